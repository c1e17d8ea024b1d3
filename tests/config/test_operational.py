"""The mark of settings on which no result depends: who has it, and that the documentation says the same."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from nvg.config import Config, operational, operational_settings, without_operational
from nvg.config.schema import DistillConfig, TokenizerTrainConfig, TrainConfig, TrainingConfig
from tests.support.toy_config import toy_config

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "artifacts.md"
BEGIN = "<!-- operational settings: compared by tests/config/test_operational.py -->"
END = "<!-- end of operational settings -->"


def table() -> str:
    """The table of docs/reference/artifacts.md, from the marks."""
    rows = ["| section | operational settings |", "| --- | --- |"]
    for section, names in operational_settings().items():
        title = f"`{section}`" if section else "none (whole sections, single values)"
        rows.append(f"| {title} | {', '.join(f'`{name}`' for name in names)} |")
    return "\n".join(rows)


def test_the_documentation_names_the_operational_settings() -> None:
    written = PAGE.read_text().split(BEGIN)[1].split(END)[0].strip()
    assert written == table(), f"write this between the markers of {PAGE}:\n{table()}"


def test_what_the_trainings_share_is_marked_for_all_of_them() -> None:
    shared = {"accumulate", "checkpoint_every", "preview_every"}
    for section in (TrainingConfig, TokenizerTrainConfig, TrainConfig, DistillConfig):
        assert shared <= set(operational(section)), section.__name__
    generators = shared | {"evaluate_every", "evaluate_samples"}
    assert set(operational(TrainConfig)) - generators == {
        *("parts", "parallel", "micro_batch", "gradient_checkpointing", "compile")
    }
    assert set(operational(DistillConfig)) - generators == {"teacher"}


def test_a_section_without_them_has_every_other_field() -> None:
    section = toy_config().train
    kept = without_operational(section)
    names = {item.name for item in dataclasses.fields(section)}
    assert kept.keys() == names - set(operational(section))
    assert all(value == getattr(section, name) for name, value in kept.items())
    assert operational(Config) == ["name", "output", "cluster", "tracking"]
