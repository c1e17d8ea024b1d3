"""The benchmark suite runs in its smoke size and its counts are exact. No time is asserted.

`serving` and `reading` need a running Ray: tests/cluster/test_serving.py and test_build_tokens.py make their rows.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import report, schedules
from benchmarks.__main__ import SECTIONS, main
from benchmarks.common import TableRow, peak_memory, timed
from nvg.config import load
from nvg.describe import flops
from nvg.generator.block import Block
from nvg.generator.rope import HEAD_WIDTH

pytestmark = pytest.mark.slow
RUN = [name for name in SECTIONS if name not in ("reading", "serving")]


@pytest.fixture(scope="module")
def output(tmp_path_factory) -> Iterator[Path]:
    """What the command writes."""
    folder, threads = tmp_path_factory.mktemp("benchmarks"), torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")  # which peers would set for good
        main(["--only", ",".join(RUN), "--threads", "1", "--output", str(folder)])
    yield folder
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def results(output) -> dict:
    """results.json."""
    return json.loads((output / "results.json").read_text())


def check(folder: Path, names: list[str]) -> None:
    """Both files have all rows of the sections, each a table with its machine."""
    results, page = json.loads((folder / "results.json").read_text()), (folder / "results.md").read_text()
    assert list(results) == names
    for name, section in results.items():
        assert section["rows"] and f"## {name}" in page
        assert {"threads", "cores", "torch", "date", "commit"} <= set(section["machine"])
        assert len({tuple(row) for row in section["rows"]}) == 1
        for row in section["rows"]:
            assert f"| {row['case']} |" in page
            assert all(math.isfinite(value) for value in row.values() if isinstance(value, float)), row


def test_every_section_gives_rows_of_one_table_and_says_where_they_are_from(output):
    check(output, RUN)


def test_plots_are_pictures(output):
    names = sorted(path.name for path in output.glob("*.png"))
    assert names == ["benchmarks_granularity.png", "benchmarks_peers.png", "benchmarks_sampler.png"]
    for name in names:
        assert (output / name).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_d16_needs_a_fifth_of_the_papers_operations_at_most(results):
    images = schedules.BATCHES[0]
    rows = {row["case"]: row for row in results["operations"]["rows"]}
    paper, few_step, guided = (rows[f"d16, batch {images}, {schedule}"] for schedule in schedules.SCHEDULES)
    assert paper["TFLOP"] > 22 * images  # 25 guided steps at seven stages: the whole schedule was counted
    for row in (few_step, guided):
        assert row["of the paper's, %"] == pytest.approx(100 * row["TFLOP"] / paper["TFLOP"])
        assert row["of the paper's, %"] <= 20
        assert row["structure"] * 2 * schedules.PAPER_STEPS == pytest.approx(paper["structure"], rel=0.02)
    assert few_step["structure, %"] <= 20
    assert guided["TFLOP"] < few_step["TFLOP"]
    for schedule, row in (("few-step", few_step), ("guided", guided)):
        clusters = rows[f"d16, batch {images}, {schedule} of clusters"]
        assert clusters["decode"] == row["decode"] and clusters["structure"] < 0.6 * row["structure"]
        assert clusters["content"] <= 0.30 * row["content"]


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_operations_of_a_block_are_those_of_its_formula_attention_included(device):
    rows, tokens, width = 4, 10, 2 * HEAD_WIDTH
    with torch.device(device):
        block = Block(width, 0.0).eval()
        x, condition = torch.zeros(rows, tokens, width), torch.zeros(rows, 1, width)
        table = torch.zeros(rows, 1, tokens, HEAD_WIDTH // 2, 2)
    projections, attention, modulation = 12 * width**2 * tokens, 2 * tokens**2 * width, 3 * width**2
    with torch.inference_mode():
        counted = flops(lambda: block(x, condition, table, [tokens]))
    assert counted == 2 * rows * (projections + attention + modulation)


def test_watching_a_sampler_and_the_second_pass_change_no_picture():
    sampler = schedules.build(load("conf/smoke.yaml"), "paper")
    before = sampler.generate(["0", "1"], flow_steps=2)
    with timed(schedules.parts_of(sampler)) as seconds:
        schedules.draw(sampler, "paper", 2, 2)
        watched = sampler.generate(["0", "1"], flow_steps=2)
    assert np.array_equal(before, watched) and np.array_equal(before, sampler.generate(["0", "1"], flow_steps=2))
    assert all(len(calls) > 0 for calls in seconds.values())
    assert "forward" not in vars(sampler.content) and "decode_canvas" not in vars(sampler.tokenizer)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells a process's peak memory")
def test_peak_memory_is_that_of_the_call():
    shape = (25, 2**20)  # 100 MB
    result, peak = peak_memory(lambda: float(torch.ones(shape).sum()))
    assert result == math.prod(shape) and peak is not None and 95 < peak < 130
    _, little = peak_memory(lambda: float(torch.ones(10).sum()))
    assert little is not None and little < 20


def test_a_page_gets_its_tables_between_its_markers(tmp_path):
    from benchmarks import reading

    page = tmp_path / "page.md"
    result = report.Result(reading, [TableRow("one", {"rows": 2048})], 1.0, report.machine("smoke", 1))
    page.write_text("before\n<!-- reading: written by python -m benchmarks -->\nold\n<!-- end of reading -->\nafter\n")
    for _ in range(2):
        report.write_page([result], tmp_path, page)
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n")
    assert text.count("| one | 2,048 |") == 1 and "old" not in text
    page.write_text("no markers\n")
    with pytest.raises(ValueError, match="reading"):
        report.write_page([result], tmp_path, page)


def test_rows_of_a_section_have_the_same_columns():
    with pytest.raises(ValueError, match="two has columns"):
        report.table([TableRow("one", {"a": 1}), TableRow("two", {"b": 1})])
