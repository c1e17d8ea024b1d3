"""What a training loop trains: the interface of the tokenizer's, the generators' and the distillation's training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from nvg.training.ema import EMA
from nvg.training.parallel import whole

Batch = dict[str, Tensor]


class Task:
    """A training's networks, optimizers, data and loss. Subclasses fill the attributes and override the methods."""

    modules: dict[str, nn.Module]  # every module with state to keep, without any wrapper
    averages: dict[str, EMA]  # of some of the modules
    optimizers: dict[str, torch.optim.Optimizer]
    clip: dict[str, list[nn.Parameter]]  # the parameters of each optimizer, clipped to their own norm
    parallel: list[nn.Module]  # modules as they are called, by whichever data parallelism (nvg/training/parallel.py)
    divisible = False  # whether a slice's loss is the mean of its parts', which can then be computed one by one

    def lr(self, step: int) -> dict[str, float]:
        """The learning rate of each optimizer."""
        raise NotImplementedError

    def batches(self, step: int) -> Iterator[Batch]:
        """This worker's share of every batch from number `step` on, without end."""
        raise NotImplementedError

    def draw(self, batch: Batch, rng: torch.Generator) -> Batch:
        """A slice of the batch with every random number of its loss, a row an image. A divisible task does so, so that
        rows have the same ones in whatever parts they are computed.

        rng: on the CPU, seeded for this slice.
        """
        return batch

    def loss(self, batch: Batch, step: int, rng: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a slice of the batch, or of a part of it, and the terms to record.

        batch: from `draw`. rng, the one that `draw` had, and torch's global random generators are seeded for this
        slice.
        """
        raise NotImplementedError

    def begin(self, batch: Batch, rng: torch.Generator) -> None:
        """The loop calls this once, with the first batch, before step 0."""

    def before_optimizers(self) -> None:
        """The loop calls this when the gradients of a step are complete."""

    def after_step(self, step: int, rng: torch.Generator) -> dict[str, float]:
        """The loop calls this after a step and its averaging; returns more values to record."""
        return {}

    def flops(self) -> float | None:
        """Floating-point operations an image of the trained networks, forward and backward; None where nobody counted
        them."""
        return None

    def averaged(self) -> dict[str, dict[str, Tensor]]:
        """The averaged weights of each module, whole. Every worker must call it."""
        return {name: {key: whole(value) for key, value in ema.shadow.items()} for name, ema in self.averages.items()}

    def preview(self, averaged: dict[str, dict[str, Tensor]]) -> dict[str, Any]:
        """Pictures (PIL) of the present state by file name. The first worker alone calls it."""
        return {}
