"""The content of a stage: tokens drawn from the most likely entries."""

from __future__ import annotations

import torch
from torch import Tensor


def pick(logits: Tensor, temperature: Tensor, top_p: Tensor, uniform: Tensor) -> Tensor:
    """Content tokens (N, T) of logits (N, T, V): temperature and top_p (N,), one uniform number a token, (N, T)."""
    return nucleus_sample(logits / temperature[:, None, None], top_p, uniform)


def nucleus_sample(logits: Tensor, top_p: Tensor, uniform: Tensor) -> Tensor:
    """Sample from the smallest set of entries whose probability reaches top_p: (N, T, V), (N,), (N, T) -> (N, T)."""
    probabilities, order = logits.softmax(dim=-1).sort(dim=-1, descending=True, stable=True)
    cumulative = probabilities.cumsum(dim=-1)
    # An entry is in the set when the mass before it is below top_p; the most likely one always is.
    inside = cumulative - probabilities < top_p[:, None, None]
    mass = (probabilities * inside).sum(dim=-1, keepdim=True)
    choice = (cumulative < uniform[..., None] * mass).sum(dim=-1, keepdim=True)
    choice = torch.minimum(choice, inside.sum(dim=-1, keepdim=True) - 1)
    return order.gather(-1, choice)[..., 0]
