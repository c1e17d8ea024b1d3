"""What changes over the stages and steps of a sample: guidance, top-p, the flow's times (docs/method.md, sampling)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nvg.generator.structure import STEP_COUNTS


def ramp(final: Tensor, index: int, last_stage: int) -> Tensor:
    """Scales (N,) that rise linearly from 1 at index 0 to `final` (N,) at index K.

    The content of stage i has index i, and so has the structure of stage i + 1, which is made of the same canvas.
    """
    return 1.0 + (final - 1.0) * (index / last_stage)


def one_pass(scales: Sequence[float], index: int) -> bool:
    """Whether guidance asks for nothing at this index of the ramp: all scales are 1 there."""
    return index == 0 or all(scale == 1.0 for scale in scales)


def falling_top_p(final: Tensor, stage: int, last_stage: int) -> Tensor:
    """top-p of a stage (N,): `final` (N,), and at stage i (K - K^(i/K)) / (K - 1) of what it lacks to 1.

    So it falls from 1 at stage 0 to `final` at stage K, slowly first; with K = 1 it is `final` at once.
    """
    left = (last_stage - last_stage ** (stage / last_stage)) / (last_stage - 1) if last_stage > 1 else 0.0
    return final + (1.0 - final) * left


def flow_times(steps: int, shift: Tensor, positions: int) -> Tensor:
    """The times of a number of Euler steps, (steps + 1, N) from 1 to 0; shift (N,) is sampler.flow_shift.

    t' = s t / (1 + (s - 1) t) of equally spaced t, s = exp(shift + 0.65 (L - 256) / 3840): above s = 1 the steps at
    the noise are short. shift = 0 leaves t as it is, whatever L.
    """
    equal = torch.linspace(1.0, 0.0, steps + 1, dtype=torch.float64, device=shift.device)[:, None]
    strength = torch.exp(shift.double() + 0.65 * (positions - 256) / 3840)
    return torch.where(shift == 0, equal, strength * equal / (1 + (strength - 1) * equal)).float()


def step_size(flow_steps: int) -> float:
    """The size of a step as a few-step generator takes it: 1 / flow_steps where it has learned that size, else 0."""
    return 1 / flow_steps if flow_steps in STEP_COUNTS else 0.0
