"""The structure maps of a rival's samples, compared with real ones."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from nvg.generator import Sampler
from nvg.granularity import structure_map

BATCH = 50  # images drawn at once: more fall out of the cache


def drawn(sampler: Sampler, count: int, *, images: bool, **settings: Any) -> tuple[Tensor, Tensor]:
    """Samples of seeds 0 ... count - 1, classes in turn: images uint8 (count, H, W, C) or empty, and codes."""
    pictures, codes = [], []
    for first in range(0, count, BATCH):
        seeds = list(range(first, min(first + BATCH, count)))
        for step in sampler.stages([seed % len(sampler.class_names) for seed in seeds], seed=seeds, **settings):
            if not images and step.stage == sampler.last_stage - 1:  # the last stage's structure follows from these
                break
        codes.append(step.sequence_codes)
        pictures.append(torch.from_numpy(step.preview) if images else torch.empty(0, dtype=torch.uint8))
    return torch.cat(pictures), torch.cat(codes)


def boundaries(codes: Tensor) -> Tensor:
    """Which neighbours are in different clusters, at each stage with a flow: codes (N, L) -> (N, K - 1, edges) bool."""
    grid, last = math.isqrt(codes.shape[1]), codes.shape[1].bit_length() - 1
    maps = torch.stack([structure_map(codes, stage) for stage in range(1, last)], dim=1).unflatten(2, (grid, grid))
    across, down = maps[..., 1:] != maps[..., :-1], maps[..., 1:, :] != maps[..., :-1, :]
    return torch.cat((across.flatten(2), down.flatten(2)), dim=2)


def structure_errors(codes: Tensor, labels: Tensor, real: Tensor, real_labels: Tensor) -> dict[str, float]:
    """`boundary` and `edges` of __main__.py: codes (N, L), labels (N,) of samples and of real maps."""
    one, other = boundaries(codes), boundaries(real)
    distances = [
        0.5 * float((histogram(a.sum(dim=1), a.shape[1]) - histogram(b.sum(dim=1), a.shape[1])).abs().sum())
        for a, b in zip(one.unbind(1), other.unbind(1), strict=True)
    ]
    differences = [
        (one[labels == label].float().mean(dim=0) - other[real_labels == label].float().mean(dim=0)).abs().mean()
        for label in real_labels.unique()
    ]
    return {"boundary": sum(distances) / len(distances), "edges": float(torch.stack(differences).mean())}


def histogram(values: Tensor, highest: int) -> Tensor:
    """Shares of 0 ... highest among values (N,)."""
    return torch.bincount(values, minlength=highest + 1) / len(values)
