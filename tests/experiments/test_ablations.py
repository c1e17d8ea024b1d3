"""The ablations' own parts: their files, their table, their plot. The runs themselves are those of the pipeline."""

from pathlib import Path

import pytest

from experiments.ablations import __main__ as ablate
from nvg.errors import ConfigError
from pipelines.steps import plan

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "experiments" / "ablations").glob("*.yaml"))
BASE = str(ROOT / "conf" / "fashion_mnist.yaml")
BASELINE = str(ROOT / "experiments" / "ablations" / "baseline.yaml")


def result(distance, low, high):
    return {
        "figures": {"frechet_distance": distance, "recall": 0.5},
        "intervals": {"frechet_distance": [low, high], "recall": [0.4, 0.6]},
        "question": "Why?",
    }


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
def test_each_file_asks_something_and_changes_what_it_says(file):
    assert len(ablate.question(str(file))) > 10
    base = ablate.read_variant(BASE, BASELINE, BASELINE, [])
    variant = ablate.read_variant(BASE, BASELINE, str(file), [])
    assert (variant != base) == (file.stem != "baseline")
    if file.stem.startswith("sampler_"):  # these share all training with the baseline
        variant.sampler = base.sampler
        assert variant == base


def test_a_sampling_ablation_trains_nothing_anew(tmp_path):
    from tests.support.synthetic import write_images

    write_images(tmp_path / "images")
    smoke = str(ROOT / "conf" / "smoke.yaml")
    overrides = [f"data.train={tmp_path}/images", f"output={tmp_path}/out"]
    folder = ROOT / "experiments" / "ablations"
    plans = {
        name: plan(ablate.read_variant(smoke, BASELINE, str(folder / f"{name}.yaml"), overrides))
        for name in ("baseline", "sampler_flow_1", "final_canvas", "baseline_seed1")
    }
    same = {
        name: [step for step in plan if plan[step].folder == plans["baseline"][step].folder]
        for name, plan in plans.items()
    }
    assert same["sampler_flow_1"] == ["tokenizer", "tokens", "generators"]
    assert same["final_canvas"] == ["tokenizer", "tokens"] and same["baseline_seed1"] == []


def test_the_table_is_ordered_and_stands_between_the_markers(tmp_path):
    results = {"baseline": result(2.0, 1.8, 2.2), "better": result(1.0, 0.9, 1.1)}
    text = ablate.table(results)
    rows = text.splitlines()[2:]
    assert rows[0].startswith("| `better` | 1.000 [0.900, 1.100] | - | - | 0.500 [0.400, 0.600] | -50% | Why? |")
    assert rows[1].startswith("| `baseline` | 2.000") and "+0%" in rows[1]
    page = tmp_path / "page.md"
    page.write_text(f"before\n{ablate.BEGIN}\nold\n{ablate.END}\nafter\n")
    ablate.write_table(page, text)
    assert page.read_text() == f"before\n{ablate.BEGIN}\n{text}\n{ablate.END}\nafter\n"
    page.write_text("no markers")
    with pytest.raises(ConfigError, match="has no lines"):
        ablate.write_table(page, text)


def test_the_plot_is_a_picture(tmp_path):
    ablate.plot({"baseline": result(2.0, 1.8, 2.2), "sampler_x": result(1.0, 0.9, 1.1)}, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes()[:4] == b"\x89PNG"


def test_a_set_without_its_baseline_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="no baseline.yaml"):
        ablate.main(["--config", BASE, str(FILES[-1])])
