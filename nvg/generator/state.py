"""The state of one call of the sampler: its images while they are drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nvg.generator.controls import Given
from nvg.generator.options import Options


@dataclass(eq=False)
class SamplingState:
    """N images in the making: what was asked for each of them, and what the stages so far have drawn."""

    labels: Tensor  # (N,) int64, indices of classes
    seeds: list[int]
    options: Options
    given: list[Given]  # of one image each
    codes: Tensor  # (N, L) int64; bits of the stages so far are set
    canvas: Tensor  # x_i, (N, L, e)
    noise: Tensor  # eps, (N, L, K), with which the flows of all stages begin: stage i's at channels i - 1 ... of it

    def rows(self, index: list[int]) -> SamplingState:
        """Some of the images, drawn as they would be with the others: rows of a network do not depend on each other."""
        return SamplingState(
            self.labels[index],
            [self.seeds[j] for j in index],
            self.options.rows(index),
            [self.given[j] for j in index],
            self.codes[index],
            self.canvas[index],
            self.noise[index],
        )

    def fill(self, rows: Sequence[Tensor | None], width: int, sample: Callable[[SamplingState], Tensor]) -> Tensor:
        """One row per image, (N, width) int64: the given one (1, width), or, where that is None, one that `sample`
        draws."""
        result = torch.zeros(len(rows), width, dtype=torch.int64, device=self.codes.device)
        missing = [j for j, row in enumerate(rows) if row is None]
        if missing:
            result[missing] = sample(self.rows(missing))
        for j, row in enumerate(rows):
            if row is not None:
                result[j] = row[0]
        return result
