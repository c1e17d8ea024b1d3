"""Clipping of gradients by their norm, in one pass over memory: the norm's own.

torch's clip_grad_norm_ reads all gradients for their norm, and reads and writes them again to scale them, by 1 where
they are short enough. The loop looks at the norms before the optimizer anyway (nvg/training/loop.py), so it knows
whether there is anything to scale; and fused AdamW divides a gradient as it reads it, by the attribute through which
torch.amp.GradScaler tells it to. Per parameter and step: 4 bytes for the norm and, of a step that is clipped, 4 more,
since the kernel writes the gradient back; before it were 12.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from nvg.training.parallel import whole

EPSILON = 1e-6  # as clip_grad_norm_ has it


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """The norm of all gradients of some parameters together. Where they are split, every worker must ask."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    return whole(nn.utils.get_total_norm(gradients, foreach=True))


def divisor(norm: Tensor, largest: float) -> Tensor:
    """What gradients of a norm are to be divided by, to have the norm `largest`."""
    return (norm + EPSILON) / largest


def step_divided(optimizer: torch.optim.Optimizer, by: Tensor | None) -> None:
    """A step of an optimizer with its gradients divided by a number, in place; None leaves them as they are."""
    if by is None:
        optimizer.step()
    elif optimizer.defaults.get("fused"):
        scaled: Any = optimizer
        scaled.grad_scale = by
        try:
            optimizer.step()
        finally:
            del scaled.grad_scale
    else:
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        torch._foreach_div_([weight.grad for weight in weights if weight.grad is not None], by)
        optimizer.step()
