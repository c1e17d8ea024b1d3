"""Classifier-free guidance (docs/method.md, sampling): u + w (c - u), c with the class and u with "no class"."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def guided(
    network: Callable[..., Tensor], labels: Tensor, inputs: tuple[Tensor, ...], scale: Tensor, no_class: int
) -> Tensor:
    """network(labels, *inputs) guided with scale w (N,), from one batch of 2N.

    labels (N,), inputs (N, ...) each; the network's output is (N, T, channels). no_class: the label of "no class".
    """
    both = torch.cat((labels, torch.full_like(labels, no_class)))
    conditional, unconditional = network(both, *(torch.cat((value, value)) for value in inputs)).chunk(2)
    scale = scale[:, None, None]
    # An image of scale 1 gets the very bits that it would get in a batch without guidance.
    return torch.where(scale == 1.0, conditional, unconditional + scale * (conditional - unconditional))
