"""Settings that are allowed and probably mean something else: lines that a command prints before it begins."""

from __future__ import annotations

import dataclasses
import fnmatch
from typing import Any, NamedTuple

from nvg.config.schema import Config, TrainingConfig, trainings


class Switch(NamedTuple):
    """A setting at whose value other settings have no effect."""

    key: str
    off: Any
    settings: tuple[str, ...]  # patterns of their keys


SWITCHES = (
    Switch("distill.steps", 0, ("distill.*",)),
    Switch("repa.weights", None, ("repa.*",)),
    Switch("tokenizer_train.lpips_weights", None, ("tokenizer_train.lpips_weight",)),
    Switch(
        "tokenizer_train.discriminator_weights",
        None,
        ("tokenizer_train.discriminator_*", "tokenizer_train.lecam_weight"),
    ),
    Switch("train.evaluate_every", 0, ("train.evaluate_samples",)),
    Switch("cluster.min_workers", None, ("cluster.resize_interval",)),
)


def remarks(config: Config) -> list[str]:
    """One line each: settings of something that is switched off, and warm-ups as long as their training."""
    lines = [line for switch in SWITCHES if (line := _without_effect(config, switch)) is not None]
    for name, section in trainings(config).items():
        steps = getattr(section, "steps", None)
        if steps is not None and (line := long_warmup(name, section, steps)) is not None:
            lines.append(line)
    return lines


def long_warmup(name: str, section: TrainingConfig, steps: int) -> str | None:
    """The remark on a warm-up that a training of some steps does not come to the end of; None where it does."""
    if section.warmup_steps < steps:
        return None
    return (
        f"warning: {name}.warmup_steps={section.warmup_steps} is not below the {steps} steps of the training: its "
        f"learning rate never comes to {name}.lr"
    )


def _without_effect(config: Config, switch: Switch) -> str | None:
    """The remark on settings that a switch leaves without effect; None where it is on, or they have their defaults."""
    name, _, field = switch.key.partition(".")
    section = getattr(config, name)
    if getattr(section, field) != switch.off:
        return None
    default = type(section)()
    given = [
        key
        for item in dataclasses.fields(section)
        if (key := f"{name}.{item.name}") != switch.key
        and any(fnmatch.fnmatch(key, pattern) for pattern in switch.settings)
        and getattr(section, item.name) != getattr(default, item.name)
    ]
    if not given:
        return None
    value = "null" if switch.off is None else switch.off
    return f"warning: {switch.key}={value} leaves {', '.join(given)} without effect"
