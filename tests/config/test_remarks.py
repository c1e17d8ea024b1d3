"""Settings that are allowed and have no effect, and warm-ups as long as their training."""

from __future__ import annotations

from pathlib import Path

import pytest

from nvg.config import load, long_warmup, remarks
from nvg.config.remarks import SWITCHES
from nvg.config.schema import TrainConfig

SMOKE = "conf/smoke.yaml"


def said(*overrides: str) -> list[str]:
    return remarks(load(SMOKE, overrides))


@pytest.mark.parametrize("file", sorted(str(path) for path in Path("conf").glob("*.yaml")))
def test_a_committed_configuration_has_no_remarks(file: str) -> None:
    assert remarks(load(file)) == []


@pytest.mark.parametrize(
    ("switch", "settings"),
    [
        ("distill.steps=0", ["distill.lr=1e-3", "distill.parts=[content]"]),
        ("distill.steps=0", ["distill.flow_steps=2"]),
        ("repa.weights=null", ["repa.block=2", "repa.weight=1.0"]),
        ("tokenizer_train.lpips_weights=null", ["tokenizer_train.lpips_weight=2"]),
        ("tokenizer_train.discriminator_weights=null", ["tokenizer_train.discriminator_lr=1e-3"]),
        ("tokenizer_train.discriminator_weights=null", ["tokenizer_train.lecam_weight=0.1"]),
        ("train.evaluate_every=0", ["train.evaluate_samples=10"]),
        ("cluster.min_workers=null", ["cluster.resize_interval=5"]),
    ],
)
def test_a_setting_of_what_is_off_says_so(switch: str, settings: list[str]) -> None:
    (line,) = said(*settings)
    assert line.startswith(f"warning: {switch} leaves ") and line.endswith(" without effect")
    for setting in settings:
        assert setting.partition("=")[0] in line


@pytest.mark.parametrize(
    "settings",
    [
        ["distill.steps=200", "distill.lr=1e-3"],
        ["repa.weights=dinov2", "repa.block=1"],
        ["train.evaluate_every=8", "train.evaluate_samples=10"],
        ["distill.lr=1e-4"],  # the default
    ],
)
def test_a_setting_of_what_is_on_or_its_default_says_nothing(settings: list[str]) -> None:
    assert said(*settings) == []


def test_every_switch_is_a_setting_and_is_off_by_default() -> None:
    config = load(SMOKE)
    for switch in SWITCHES:
        section, _, name = switch.key.partition(".")
        assert getattr(getattr(config, section), name) == switch.off


@pytest.mark.parametrize("section", ["tokenizer_train", "train", "distill"])
@pytest.mark.parametrize(("steps", "warmup"), [(10, 10), (10, 500), (1, 1)])
def test_a_warm_up_as_long_as_its_training_is_remarked(section: str, steps: int, warmup: int) -> None:
    (line,) = said(f"{section}.steps={steps}", f"{section}.warmup_steps={warmup}")
    assert line == (
        f"warning: {section}.warmup_steps={warmup} is not below the {steps} steps of the training: its learning rate "
        f"never comes to {section}.lr"
    )
    assert said(f"{section}.steps={warmup + 1}", f"{section}.warmup_steps={warmup}") == []


def test_the_steps_of_a_length_in_epochs_are_known_by_the_training() -> None:
    assert long_warmup("train", TrainConfig(warmup_steps=7), 7) is not None
    assert long_warmup("train", TrainConfig(warmup_steps=7), 8) is None
