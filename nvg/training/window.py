"""The record of a training: means over the steps since the last record."""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch
import torch.distributed as distributed
from torch import Tensor

from nvg.training.parallel import workers


class Window:
    """Means over the steps since the last record, kept on the device until they are read."""

    def __init__(self) -> None:
        self.last: dict[str, float] = {}  # values of which the newest counts
        self._reset()

    def _reset(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.steps = 0
        self.waited = 0.0  # seconds for data
        self.start = time.perf_counter()

    def add(self, values: Mapping[str, Tensor], weight: float) -> None:
        """Add a step's values, or the share `weight` of them."""
        for name, value in values.items():
            value = value.detach().float() * weight
            self.sums[name] = self.sums[name] + value if name in self.sums else value

    def close(self) -> dict[str, float]:
        """The means, over all workers too; a fresh window begins. Every worker calls it."""
        stacked = torch.stack(list(self.sums.values())) / self.steps
        if workers() > 1:
            distributed.all_reduce(stacked)
            stacked /= workers()
        seconds = max(time.perf_counter() - self.start, 1e-9)
        metrics = dict(zip(self.sums, stacked.tolist(), strict=True)) | self.last
        metrics |= {"steps_per_second": self.steps / seconds, "data_wait_share": self.waited / seconds}
        self._reset()
        return metrics
