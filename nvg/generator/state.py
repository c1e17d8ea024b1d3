"""The state of one call of the sampler: its images while they are drawn.

Everything that the stages need is on the device before the first one begins, and what decides their course is on the
host: between stages nobody waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from nvg.generator.options import Options


@dataclass(eq=False)
class GivenRows:
    """What is given of one stage: `values` (N, width) int64, of the images in `mask` (N, 1), or of all with None."""

    values: Tensor
    mask: Tensor | None

    @staticmethod
    def of(rows: Sequence[Tensor | None], width: int) -> GivenRows | None:
        """From a row (1, width) or None for each image. None where nothing is given, of any image."""
        some = [row for row in rows if row is not None]
        if len(some) == len(rows):
            return GivenRows(torch.cat(some) if some else torch.zeros(0, width, dtype=torch.int64), None)
        if not some:
            return None
        values = torch.cat([torch.zeros_like(some[0]) if row is None else row for row in rows])
        return GivenRows(values, torch.tensor([[row is not None] for row in rows], device=values.device))


@dataclass(eq=False)
class SamplingState:
    """N images in the making: what was asked for each of them, and what the stages so far have drawn."""

    labels: Tensor  # (N,) int64, indices of classes
    classes: list[int]  # the same, where the host reads them
    seeds: list[int]
    options: Options
    given_codes: list[GivenRows | None]  # of stages 0 ... K: structure codes up to that stage
    given_tokens: list[GivenRows | None]  # of stages 0 ... K
    noise: Tensor  # eps, (N, L, K), with which the flows of all stages begin: stage i's at channels i - 1 ... of it
    halving: dict[int, Tensor]  # uniform numbers by stage, 1 ... K - 1: (N, L) each
    picking: dict[int, Tensor]  # uniform numbers by stage, 0 ... K: (N, 2^i) each
    times: Tensor  # of the flow's steps, (steps + 1, N) from 1 to 0
    codes: Tensor  # (N, L) int64; bits of the stages so far are set
    canvas: Tensor  # x_i, (N, L, e)
    order: Tensor | None  # of the codes so far, (N, L), where a generator has cluster tokens
    first_logits: Tensor | None = None  # of stage 0, (N, 1, V)

    def known_order(self) -> tuple[Tensor, ...]:
        """The order, as inputs of a generator: none where there is none."""
        return () if self.order is None else (self.order,)

    def of_stage(self, stage: int) -> SamplingState:
        """The state without what a stage does not read that is drawn whole: of one size whatever is given elsewhere."""
        return replace(
            self,
            classes=[],
            seeds=[],
            given_codes=[None] * (stage + 1),
            given_tokens=[None] * (stage + 1),
            halving={stage: self.halving[stage]} if stage in self.halving else {},
            picking={stage: self.picking[stage]},
            first_logits=self.first_logits if stage == 0 else None,
        )

    def fill(self, given: GivenRows | None, sample: Callable[[SamplingState], Tensor]) -> Tensor:
        """One row per image, (N, width) int64: the given one, or, where that is missing, one that `sample` draws.

        `sample` draws a row for every image: a batch has one shape at all stages.
        """
        if given is None:
            return sample(self)
        return given.values if given.mask is None else torch.where(given.mask, given.values, sample(self))


for tree in (SamplingState, Options):  # nvg/generator/graphs.py copies their tensors
    pytree.register_dataclass(tree)
