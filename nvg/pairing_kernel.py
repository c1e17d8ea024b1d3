"""The greedy matching of clusters on a GPU: one launch per level, and nothing that the host has to wait for.

The plain form is `matching` in nvg/granularity.py, and both give the same pairs to the last bit
(tests/test_pairing_kernel.py). Imported where latents are on a GPU alone: Triton comes with torch for those.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 8192  # distances that a program looks at together: 32 a thread


@triton.jit
def match(channels, distances, nearest, partner, width, COUNT: tl.constexpr, ROWS: tl.constexpr):
    """The matching of one image: the program's number is the image's.

    channels: (N, width, COUNT) features. distances (N, COUNT, COUNT) and partner (N, COUNT) are results, nearest
    (N, COUNT) is room to work in. Threads share them through memory: a barrier stands wherever one reads what another
    wrote.
    """
    image = tl.program_id(0).to(tl.int64)
    channels += image * width * COUNT
    distances += image * COUNT * COUNT
    nearest += image * COUNT
    partner += image * COUNT
    items = tl.arange(0, COUNT)
    infinity = float("inf")
    tl.store(partner + items, tl.full((COUNT,), -1, tl.int64))
    for start in range(0, COUNT, ROWS):
        rows = start + tl.arange(0, ROWS)
        tile = tl.zeros((ROWS, COUNT), channels.dtype.element_ty)
        for channel in range(width):
            one = tl.load(channels + channel * COUNT + rows)
            other = tl.load(channels + channel * COUNT + items)
            difference = one[:, None] - other[None, :]
            tile += difference * difference
        tile = tl.where(rows[:, None] == items[None, :], infinity, tile)
        tl.store(distances + rows[:, None] * COUNT + items[None, :], tile)
    tl.debug_barrier()
    left = tl.full((), COUNT, tl.int32)
    while left > 0:
        free = tl.load(partner + items) < 0
        least = tl.full((COUNT,), infinity, channels.dtype.element_ty)
        closest = tl.zeros((COUNT,), tl.int32)
        for start in range(0, COUNT, ROWS):
            rows = start + tl.arange(0, ROWS)
            both = (tl.load(partner + rows) < 0)[:, None] & free[None, :]
            tile = tl.load(distances + rows[:, None] * COUNT + items[None, :], mask=both, other=infinity)
            here = tl.min(tile, axis=0)
            first = tl.min(tl.where(tile == here[None, :], rows[:, None], COUNT), axis=0)
            closest = tl.where(here < least, first, closest)  # of equal ones the first stays
            least = tl.minimum(here, least)
        tl.store(nearest + items, closest)
        tl.debug_barrier()
        mutual = free & (tl.load(nearest + closest) == items)
        tl.store(partner + items, closest.to(tl.int64), mask=mutual)
        left -= tl.sum(mutual.to(tl.int32))
        tl.debug_barrier()


def kernel_partners(features: Tensor) -> tuple[Tensor, Tensor]:
    """Each item's partner in the greedy matching, and all distances: (N, n, e) -> (N, n) int64, (N, n, n).

    n is a power of two, and all distances are finite: so each round of the kernel matches one pair at least.
    """
    samples, count, width = features.shape
    channels = features.mT.contiguous()  # (N, e, n): neighbours in memory are read together
    distances = features.new_empty(samples, count, count)
    nearest = torch.empty(samples, count, dtype=torch.int32, device=features.device)
    partner = torch.empty(samples, count, dtype=torch.int64, device=features.device)
    constants, options = launch_options(count)
    with torch.cuda.device_of(features):
        match[(samples,)](channels, distances, nearest, partner, width, **constants, **options)
    return partner, distances


def launch_options(count: int) -> tuple[dict[str, int], dict[str, int]]:
    """The constants of the kernel for n items, and how it is compiled."""
    rows = min(count, max(1, TILE // count))
    # Without fusion d += x * x rounds twice, as in the plain form: ties must be ties.
    options = {"num_warps": min(8, max(1, count * rows // 1024)), "enable_fp_fusion": False}
    return {"COUNT": count, "ROWS": rows}, options
