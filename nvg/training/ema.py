"""Exponential moving average of weights: the sampler has the averaged weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from nvg.training.parallel import local


class EMA:
    """shadow <- d * shadow + (1 - d) * weights, d = min(decay, (1 + n) / (10 + n)) at update number n = 0, 1, ...

    The rise of d lets a short training forget its random beginning; after 10 / (1 - decay) updates it is `decay`.
    The shadow holds every floating-point tensor of the module's state, in float32; others are copied. Where a module is
    split over workers (FSDP2), so is its shadow.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module = module
        self.decay = decay
        self.updates = 0
        self.weights = module.state_dict(keep_vars=True)  # the module's own tensors: listing them anew takes time
        self.shadow: dict[str, Tensor] = {
            name: value.detach().clone().float() if value.is_floating_point() else value.detach().clone()
            for name, value in module.state_dict().items()
        }

    @torch.no_grad()
    def update(self) -> None:
        """Take in the module's weights as they are now."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        shadows, weights = [], []
        for name, value in self.weights.items():
            if value.is_floating_point():
                shadows.append(local(self.shadow[name]))
                weights.append(local(value.detach()).float())
            else:
                self.shadow[name].copy_(value)
        torch._foreach_lerp_(shadows, weights, 1.0 - decay)

    @torch.no_grad()
    def reset(self) -> None:
        """Start again at the module's weights as they are now."""
        self.updates = 0
        for name, value in self.module.state_dict().items():
            local(self.shadow[name]).copy_(local(value))

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Give the module the averaged weights within this context, for previews.

        The module's mode and its parameters' requires_grad are put back too, for a sampler changes both.
        """
        weights = {name: value.detach().clone() for name, value in self.module.state_dict().items()}
        trained = [parameter for parameter in self.module.parameters() if parameter.requires_grad]
        training = self.module.training
        try:
            self.module.load_state_dict(self.shadow)
            self.module.eval()
            yield
        finally:
            self.module.load_state_dict(weights)
            self.module.train(training)
            for parameter in trained:
                parameter.requires_grad_(True)

    @torch.no_grad()
    def copy_rows(self, name: str, rows: Tensor) -> None:
        """Take some rows of a weight as they are, without averaging: entries that the task moved elsewhere."""
        self.shadow[name][rows] = self.module.state_dict()[name][rows].detach().float()
