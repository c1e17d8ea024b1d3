"""In how many equal parts a slice of a batch is computed, so that a part fits into a GPU's memory.

A part's memory is a constant plus so much for each image: two passes, of one image and of two, tell both. The result
does not depend on the parts, but for the order of sums: all random numbers are drawn for the slice as a whole
(Task.draw).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
import torch.distributed as distributed

from nvg.training.parallel import local, workers

SHARE = 0.9  # of the free memory, which the allocator cuts into pieces


def parts_of(rows: int, most: int) -> int:
    """The least number of equal parts of `rows` rows with at most `most` rows each."""
    return next(parts for parts in range(math.ceil(rows / most), rows + 1) if rows % parts == 0)


def most_rows(run: Callable[[int], None], rows: int, device: torch.device, reserved: int) -> int:
    """How many of `rows` rows fit at once into what a GPU has free, at least one; the least number of all workers,
    each of which must ask.

    run(n): a forward and a backward pass of n rows. reserved: bytes that are to stay free.
    """
    run(1)  # gradients, and the workspaces of libraries, are there from now on
    one, two = (peak_bytes(run, count, device) for count in (1, 2))
    each = max(two - one, 1)
    most = int((SHARE * (free_bytes(device) - reserved) - (one - each)) / each)
    return least_of_all(max(1, min(rows, most)), device)


def peak_bytes(run: Callable[[int], None], rows: int, device: torch.device) -> int:
    """The most bytes that a pass of some rows holds, beyond what was held before it."""
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run(rows)
    return torch.cuda.max_memory_allocated(device) - before


def free_bytes(device: torch.device) -> int:
    """Bytes of a GPU that this process can still use."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def missing_moments(optimizers: Iterable[torch.optim.Optimizer]) -> int:
    """Bytes of the moments that optimizers make at their first step: two numbers a weight."""
    weights = [
        local(weight)
        for optimizer in optimizers
        for group in optimizer.param_groups
        for weight in group["params"]
        if weight not in optimizer.state
    ]
    return sum(2 * weight.numel() * weight.element_size() for weight in weights)


def least_of_all(number: int, device: torch.device) -> int:
    """The least of the workers' numbers."""
    if workers() == 1:
        return number
    numbers = torch.tensor(number, device=device)
    distributed.all_reduce(numbers, distributed.ReduceOp.MIN)
    return int(numbers)
