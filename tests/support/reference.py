"""Slow, plain versions of what the package computes in batches: the truth that tests hold it against."""

from __future__ import annotations

import torch
from torch import Tensor


def sequential_pairs(distances: Tensor) -> list[tuple[int, int]]:
    """Greedy matching of one sample, as the sentence says it: take the closest pair, take it out, go on.

    distances: (n, n). Ties go to the lower first index, then the lower second. Pairs come in
    the order in which they are taken.
    """
    left = list(range(distances.shape[0]))
    values = distances.tolist()
    pairs = []
    while left:
        _, a, b = min((values[a][b], a, b) for a in left for b in left if a < b)
        pairs.append((a, b))
        left = [index for index in left if index not in (a, b)]
    return pairs


def sequential_codes(latent: Tensor, child_order: str = "raster") -> Tensor:
    """Structure codes of one latent (L, e), by sequential greedy matching: (L,) int64.

    Merged clusters are numbered by their first position (raster), or in the order in which they are made (merge); of a
    pair the one with the lower number gets bit 0.
    """
    positions = latent.shape[0]
    members = [[index] for index in range(positions)]
    features = list(latent.float().unbind(0))
    codes = [0] * positions
    bit = 0
    while len(members) > 1:
        stacked = torch.stack(features)
        distances = torch.zeros(len(members), len(members))
        for channel in stacked.unbind(1):
            distances += (channel[:, None] - channel[None, :]) ** 2
        new_members, new_features = [], []
        for a, b in sequential_pairs(distances):
            for position in members[b]:  # b is the higher number
                codes[position] |= 1 << bit
            new_members.append(members[a] + members[b])
            new_features.append((features[a] + features[b]) / 2)
        order = list(range(len(new_members)))
        if child_order == "raster":
            order.sort(key=lambda index: min(new_members[index]))
        members, features = [new_members[i] for i in order], [new_features[i] for i in order]
        bit += 1
    return torch.tensor(codes)
