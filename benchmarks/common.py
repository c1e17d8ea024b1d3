"""Shared by all sections: table rows, timing in turns, time by part, operations without computing, peak memory.

A machine's speed drifts, so seconds of two runs are not compared: variants take turns within each round, after a
warm-up. Quote the median of a run, and ratios of medians within it.

Models have random weights: what a pass costs does not depend on them.
"""

from __future__ import annotations

import ctypes
import gc
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from nvg.describe import Counter
from nvg.generator.block import Block

Value = float | int | str | None
Returned = TypeVar("Returned")
Target = tuple[Any, str]  # an object, and the name of one of its callables


@dataclass(frozen=True)
class TableRow:
    """One line of a section's table: values by column, the same columns in all rows of a section."""

    case: str
    values: Mapping[str, Value]  # None: does not apply, or was not measured


def text(value: Value) -> str:
    """A number rounded to three significant digits, a text as it is, nothing for None."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else value


def say(line: str) -> None:
    """Write a line on progress to standard error."""
    print(f"{time.strftime('%H:%M:%S')}  {line}", file=sys.stderr, flush=True)


# ---- time ----


def in_turns(
    variants: Mapping[str, Callable[[], Returned]], rounds: int, *, warmup: Iterable[str] | None = None
) -> dict[str, list[Returned]]:
    """The values that each variant returns, over rounds in which each is called once, after one call that is left out.

    warmup: the variants that are called beforehand, where not all: those that are left out share their kernels.
    """
    for name in variants if warmup is None else warmup:
        variants[name]()
    results: dict[str, list[Returned]] = {name: [] for name in variants}
    others = gc.get_freeze_count()  # of whom has frozen objects for good, as tests/conftest.py has
    gc.collect()
    gc.freeze()  # a collection then looks at what calls have made, not at every module that was imported
    try:
        for _ in range(rounds):
            for name, call in variants.items():
                gc.collect()
                results[name].append(call())
    finally:
        if not others:
            gc.unfreeze()
    return results


def seconds(call: Callable[[], object]) -> float:
    """The seconds that one call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def median_seconds(variants: Mapping[str, Callable[[], object]], rounds: int, *, calls: int = 1) -> dict[str, float]:
    """The median seconds of one call of each variant, in turns; calls: how many make one measurement."""

    def measured(call: Callable[[], object]) -> Callable[[], float]:
        return lambda: seconds(lambda: [call() for _ in range(calls)]) / calls

    results = in_turns({name: measured(call) for name, call in variants.items()}, rounds)
    return {name: statistics.median(values) for name, values in results.items()}


# ---- by part: an object's callables, watched while they are used ----


@contextmanager
def replaced(parts: Mapping[str, Iterable[Target]], wrap: Callable[[str, Callable], Callable]) -> Iterator[None]:
    """Within the block each callable of a part is wrap(part, the callable before): also a module's `forward`."""
    before: list[tuple[Any, str, Callable | None]] = []
    for part, targets in parts.items():
        for owner, name in targets:
            before.append((owner, name, vars(owner).get(name)))
            setattr(owner, name, wrap(part, getattr(owner, name)))
    try:
        yield
    finally:
        for owner, name, call in reversed(before):
            delattr(owner, name)  # the class's is seen again
            if call is not None:
                setattr(owner, name, call)


@contextmanager
def timed(parts: Mapping[str, Iterable[Target]]) -> Iterator[dict[str, list[float]]]:
    """Seconds of every call of a part's callables within the block, in order. Parts must not call each other."""
    calls: dict[str, list[float]] = {part: [] for part in parts}
    with replaced(parts, lambda part, call: _watched(call, calls[part])):
        yield calls


def _watched(call: Callable, calls: list[float]) -> Callable:
    def inner(*arguments: Any, **named: Any) -> Any:
        start = time.perf_counter()
        result = call(*arguments, **named)
        calls.append(time.perf_counter() - start)
        return result

    return inner


@contextmanager
def counted(parts: Mapping[str, Iterable[Target]]) -> Iterator[dict[str, int]]:
    """Floating-point operations of a part's callables within the block, which are not computed.

    The callables' modules are on torch's meta device, which knows shapes and nothing else; their callers are not.
    So a sampler runs its whole schedule on zeros, and every pass that it asks for is counted. A
    multiply-add is two operations; matrix products, convolutions and attention count (torch.utils.flop_counter). Of the
    blocks of a network, which are alike, one is looked into for each shape.
    """
    totals, counter = dict.fromkeys(parts, 0), Counter()
    seen: dict[tuple, tuple[int, Any]] = {}

    def once(key: tuple, given: Any, call: Callable) -> tuple[int, Any]:
        """The operations and the result of a call: with the same shapes they are the same."""
        key += tuple(tuple(x.shape) if isinstance(x, Tensor) else x for x in tree_leaves(given))
        if key in seen:
            counter.flops += seen[key][0]
        else:
            before = counter.flops
            result = call()
            seen[key] = (counter.flops - before, result)
        return seen[key]

    def of_block(_: str, call: Callable) -> Callable:
        def inner(block: Block, *arguments: Any) -> Any:
            alike = tuple(parameter.shape for parameter in block.parameters())
            return once(("block", *alike), arguments, lambda: call(block, *arguments))[1]

        return inner

    def wrap(part: str, call: Callable) -> Callable:
        def compute(given: Any) -> Any:
            arguments, named = tree_map(lambda x: x.to("meta") if isinstance(x, Tensor) else x, given)
            with counter, torch.no_grad():
                return call(*arguments, **named)

        def inner(*arguments: Any, **named: Any) -> Any:
            given = (arguments, named)
            flops, result = once((part, id(call)), given, lambda: compute(given))
            totals[part] += flops
            return tree_map(lambda x: torch.zeros(x.shape, dtype=x.dtype) if isinstance(x, Tensor) else x, result)

        return inner

    with replaced({"block": [(Block, "forward")]}, of_block), replaced(parts, wrap):
        yield totals


# ---- memory ----


def peak_memory(call: Callable[[], Returned]) -> tuple[Returned, float | None]:
    """The value that a call returns, and the most MB that this process held during it above its size before.

    The kernel's high-water mark of resident memory, set back before the call; memory that the allocator keeps of
    earlier calls is given back first. None where there is no /proc (not Linux).
    """
    gc.collect()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = _status_mb("VmRSS")
    except OSError:
        return call(), None
    result = call()
    return result, _status_mb("VmHWM") - before


def _status_mb(field: str) -> float:
    match = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    if match is None:
        raise OSError(f"/proc/self/status has no {field}")
    return int(match[1]) / 1024


# ---- models ----


def randomized(module: nn.Module) -> nn.Module:
    """The same module with small random numbers where its parameters begin at zero, in evaluation mode."""
    with torch.no_grad():
        for parameter in module.parameters():
            if not parameter.is_meta and not parameter.any():
                parameter.normal_(std=0.02)
    return module.eval().requires_grad_(False)


def weights_mb(*modules: nn.Module) -> float:
    """The MB (2^20 bytes) of all parameters."""
    return sum(item.numel() * item.element_size() for module in modules for item in module.parameters()) / 2**20
