"""scripts/gpu_check: its configuration plans, its judgement passes and fails; what needs a GPU says so without one."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from nvg import config as configuration
from nvg.errors import ConfigError
from pipelines import run
from pipelines.steps import Artifact
from scripts import gpu_check
from tests.support.synthetic import write_images

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "conf/fashion_mnist_gpu.yaml")
SHIPPED = ROOT / "nvg/assets/fashion-mnist"
BARS = gpu_check.read_bars(gpu_check.BARS)
JUDGED = [name for name, bar in BARS.items() if len(bar) == 2]


@pytest.fixture
def artifacts(tmp_path: Path) -> dict[str, Artifact]:
    """A finished run, with the figures of the shipped model."""
    found = {
        step: Artifact(step, "0", str(tmp_path / step)) for step in ("tokenizer", "tokens", "generators", "evaluation")
    }
    metadata, evaluation = (json.loads((SHIPPED / name).read_text()) for name in ("metadata.json", "evaluation.json"))
    for step, artifact in found.items():
        folder = Path(artifact.folder)
        folder.mkdir()
        (folder / "timing.json").write_text(json.dumps({"seconds": 90.0}))
        (folder / "metadata.json").write_text(json.dumps(metadata if step in gpu_check.TRAININGS else {}))
    (tmp_path / "evaluation" / "evaluation.json").write_text(json.dumps(evaluation))
    return found


# ---- the configuration ----


def test_the_configuration_has_the_full_length_of_the_method() -> None:
    config = configuration.load(CONFIG)
    assert config.tokenizer.last_stage + 1 == 9 and config.tokenizer.positions == 256
    assert config.content.tokens == config.structure.canvas_tokens == "clusters"
    assert config.cluster.use_gpu
    assert BARS["generators_loss"]["most"] == pytest.approx(math.log(config.tokenizer.codebook_size), abs=0.01)


def test_the_configuration_plans_all_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_images(tmp_path / "images", each=4, size=32)
    settings = ["data.source=folder", f"data.train={tmp_path}/images", "data.test=null", "data.class_names=null"]
    settings += ["data.num_classes=3", f"output={tmp_path}/run"]
    run.main(["--config", CONFIG, "--dry-run", *settings])
    planned = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert planned == ["tokenizer", "tokens", "generators", "evaluation"]


# ---- the judgement ----


def reached() -> dict[str, float]:
    """Figures that reach every bar exactly."""
    return {name: bar.get("least", bar.get("most", 0.0)) for name, bar in BARS.items()}


def test_figures_at_their_bars_pass_and_bars_to_be_set_judge_nothing() -> None:
    lines, passed = gpu_check.judge(reached(), BARS)
    assert passed and lines[-1] == "PASS"
    assert sum("to be set" in line for line in lines) == len(BARS) - len(JUDGED) > 0
    assert gpu_check.judge({name: reached()[name] for name in JUDGED}, BARS)[1]


@pytest.mark.parametrize("name", JUDGED)
@pytest.mark.parametrize("worse", ["beyond the bar", "missing", "no number"])
def test_a_figure_that_does_not_reach_its_bar_fails_the_check_by_name(name: str, worse: str) -> None:
    found: dict[str, Any] = reached()
    if worse == "missing":
        del found[name]
    else:
        found[name] = math.nan if worse == "no number" else found[name] + (-1e-3 if "least" in BARS[name] else 1e-3)
    lines, passed = gpu_check.judge(found, BARS)
    assert not passed and lines[-1] == "FAIL"
    assert [line.split()[0] for line in lines if "FAIL:" in line] == [name]
    assert BARS[name]["why"] in "\n".join(lines)


def test_the_shipped_models_figures_are_read_and_pass(artifacts: dict[str, Artifact]) -> None:
    found = gpu_check.figures(artifacts)
    assert set(BARS) <= set(found)
    assert found["minutes"] == 6.0 and found["generators_loss"] == pytest.approx(4.69, abs=0.01)
    assert gpu_check.judge(found, BARS)[1]


def test_a_run_that_is_not_finished_is_not_judged(artifacts: dict[str, Artifact]) -> None:
    (Path(artifacts["evaluation"].folder) / "metadata.json").unlink()
    with pytest.raises(ConfigError, match=r"evaluation is not finished: run scripts/gpu_check.sh again"):
        gpu_check.figures(artifacts)


@pytest.mark.parametrize("bar", ["least: 1.0", "why: x\n  least: 1\n  most: 2", "why: x\n  lest: 1", "24.0"])
def test_a_bar_without_reason_or_with_another_key_is_refused(tmp_path: Path, bar: str) -> None:
    path = tmp_path / "bars.yaml"
    path.write_text("reconstruction_psnr: 24.0\n" if bar == "24.0" else f"reconstruction_psnr:\n  {bar}\n")
    with pytest.raises(ConfigError, match="reconstruction_psnr must have `why`"):
        gpu_check.read_bars(path)


# ---- without a GPU ----


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_script_refuses_a_machine_without_a_gpu() -> None:
    environment = os.environ | {"PYTHON": sys.executable}
    done = subprocess.run(
        [str(ROOT / "scripts/gpu_check.sh")], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 1
    assert "gpu_check needs a GPU: torch finds none here" in done.stderr
