"""`evaluate.given`: the structure that an evaluation gives the sampler, as a text and as what it means."""

from __future__ import annotations

from dataclasses import dataclass

from nvg.config.fields import Range
from nvg.errors import ConfigError

FORMS = "own:STAGE, other:STAGE, drawn, noisy:SHARE"
SHARES = Range(above=0, most=0.5)  # beyond one half a map comes nearer to the one whose two sides are exchanged


@dataclass(frozen=True)
class GivenStructure:
    """Structure that is given in place of the one that the sampler would generate, one held-out image's per sample."""

    kind: str  # own | other | drawn | noisy
    stages: int  # the maps of stages 1 ... `stages` are given
    flipped: float = 0.0  # share of the positions that change sides


def read_given(text: str, last_stage: int) -> GivenStructure:
    """`own:3`, `other:3`, `drawn` or `noisy:0.05`, for a model of stages 0 ... last_stage.

    Raises ConfigError naming the key for another text, a stage that the model has not, or a share out of range.
    """
    key = f"evaluate.given={text}"
    kind, colon, value = text.partition(":")
    if kind == "drawn" and not colon:
        return GivenStructure(kind, 1)
    if kind in ("own", "other") and value.isdecimal():
        if not 1 <= int(value) <= last_stage:
            raise ConfigError(f"{key}: stage {value} is none of 1 ... {last_stage}, the stages that have structure")
        return GivenStructure(kind, int(value))
    if kind == "noisy" and (share := _share(value)) is not None:
        if share not in SHARES:
            raise ConfigError(f"{key}: the share {value} must be {SHARES}")
        return GivenStructure(kind, last_stage, share)
    raise ConfigError(f"{key} is none of {FORMS}")


def _share(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
