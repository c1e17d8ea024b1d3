"""Random numbers of a sample, each from a generator of its own for (seed, stage, purpose)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from nvg.granularity import last_stage

FLOW, HALVING, CONTENT = 0, 1, 2  # purposes of a random draw


def draw(
    seeds: Sequence[int], stage: int, purpose: int, shape: Sequence[int], distribution: Callable[..., Tensor]
) -> Tensor:
    """Random numbers of N images, each from its own seed: (N, *shape) on the CPU, whatever the device.

    distribution: torch.rand or torch.randn.
    """
    result = torch.empty(len(seeds), *shape)
    for row, seed in zip(result, seeds, strict=True):
        rng = torch.Generator().manual_seed((seed * 1_000_003 + stage * 31 + purpose) % 2**63)
        row.copy_(distribution(tuple(shape), generator=rng))
    return result


def draw_all(
    seeds: Sequence[int], positions: int, device: torch.device
) -> tuple[Tensor, dict[int, Tensor], dict[int, Tensor]]:
    """All random numbers of N images, moved to the device in one copy: the flow's noise (N, L, K), and the uniform
    numbers by stage, (N, L) of the halvings 1 ... K - 1, (N, 2^i) of the content 0 ... K."""
    last = last_stage(positions)
    halvings, contents = range(1, last), range(last + 1)
    each = [draw(seeds, 0, FLOW, (positions, last), torch.randn)]
    each += [draw(seeds, stage, HALVING, (positions,), torch.rand) for stage in halvings]
    each += [draw(seeds, stage, CONTENT, (2**stage,), torch.rand) for stage in contents]
    together = torch.cat([one.flatten() for one in each])
    if device.type == "cuda":  # from pinned memory the copy goes on while the host does
        together = together.pin_memory()
    moved = together.to(device, non_blocking=True).split([one.numel() for one in each])
    noise, *uniform = (one.view(like.shape) for one, like in zip(moved, each, strict=True))
    return noise, dict(zip(halvings, uniform, strict=False)), dict(zip(contents, uniform[len(halvings) :], strict=True))


def gumbel(uniform: Tensor) -> Tensor:
    """Standard Gumbel noise of uniform numbers, -log(-log(u))."""
    return -(-uniform.clamp(1e-9, 1 - 1e-7).log()).log()
