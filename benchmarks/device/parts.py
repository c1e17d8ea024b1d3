"""What is measured, the most important first, and what cannot be."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from benchmarks.device import dit, ours, var
from benchmarks.device.clock import Measured, Work
from benchmarks.device.ours import Setup
from nvg.errors import ConfigError
from nvg.extras import require

Part = Callable[[Setup], Iterator[Work | Measured]]

PARTS: dict[str, Part] = {
    "sampling": ours.sampling,
    "var": var.works,
    "compiled": ours.compiled,
    "training": ours.training,
    "decoder": ours.decoder,
    "tokens": ours.tokens,
    "tokenizer": ours.tokenizer,
    "first_picture": ours.first_picture,
    "paper": ours.paper,
    "dit": dit.works,
}
NEEDS_RAY = ("reading", "serving")  # sections of the suite that measure no device


def check(name: str, setup: Setup) -> None:
    """Raises NvgError where a part cannot be measured, saying what it needs."""
    if name == "var" and setup.var is None:
        raise ConfigError("give --var DIR, a checkout of FoundationVision/VAR")
    if name == "dit":
        require("DiT-XL/2", "diffusers")
