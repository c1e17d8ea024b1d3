"""How a call is measured on a device: seconds by CUDA events, memory, kernels and launches, and the device's ceiling.

On a CPU the same by the host's clock, where launches are the operations that the host starts.
"""

from __future__ import annotations

import gc
import signal
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.common import TableRow
from nvg.describe import Counter

LEAST_ROUNDS, MOST_ROUNDS = 3, 20
LAUNCHES = ("cudaLaunch", "cuLaunch", "cudaGraphLaunch")  # how the names of calls that start kernels begin
NO_KERNELS = ("Memcpy", "Memset")


@dataclass(frozen=True)
class Work:
    """A call to be measured. It takes or makes a number of images."""

    part: str  # sampling, training, ...
    case: str
    images: int
    call: Callable[[], object]
    flops: float | None = None  # of an image; None where nobody counted them
    warmups: int = 2  # calls that are left out, the first among them: it compiles, and records CUDA graphs
    profiled: bool = True  # whether kernels are counted, in one more call
    most_seconds: float = 8.0  # no round begins later


@dataclass(frozen=True)
class Measured:
    """The figures of a work."""

    part: str
    case: str
    images: int
    seconds: float  # the median of the rounds
    rounds: int
    first: float  # seconds of the first call: with compilation and the choice of kernels
    flops: float | None  # of all images
    ceiling: float  # floating-point operations a second of a large matrix product
    launches: int | None = None  # calls of the host that start kernels
    kernels: int | None = None
    busy: float | None = None  # seconds in which the GPU computes or copies
    gigabytes: float | None = None  # at the peak, weights included

    @property
    def rate(self) -> float:
        """Images a second."""
        return self.images / self.seconds

    @property
    def utilization(self) -> float | None:
        """The share of the ceiling."""
        return None if self.flops is None else self.flops / self.seconds / self.ceiling

    @property
    def row(self) -> TableRow:
        """The figures as a line of the table."""
        return TableRow(
            f"{self.part}: {self.case}, batch {self.images}",
            {
                "ms": 1e3 * self.seconds,
                "rounds": self.rounds,
                "images a second": self.rate,
                "TFLOP/s": None if self.flops is None else self.flops / self.seconds / 1e12,
                "of the ceiling, %": None if self.utilization is None else 100 * self.utilization,
                "launches": self.launches,
                "kernels": self.kernels,
                "busy, %": None if self.busy is None else 100 * self.busy / self.seconds,
                "GB at the peak": self.gigabytes,
                "first call, s": self.first,
            },
        )


def seconds_of(call: Callable[[], object], device: torch.device) -> float:
    """The seconds of one call, until the device is done with it."""
    if device.type != "cuda":
        before = time.perf_counter()
        call()
        return time.perf_counter() - before
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    call()
    end.record()
    torch.cuda.synchronize(device)
    return start.elapsed_time(end) / 1e3


def measure(work: Work, device: torch.device, ceiling: float) -> Measured:
    """Call a work until it is warm, then for some rounds, then once under a profiler."""
    free(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    first, *_ = (seconds_of(work.call, device) for _ in range(work.warmups))
    rounds: list[float] = []
    start = time.perf_counter()
    longest = work.most_seconds if device.type == "cuda" else 0.0  # toys on a CPU: their seconds say nothing
    while len(rounds) < LEAST_ROUNDS or (len(rounds) < MOST_ROUNDS and time.perf_counter() - start < longest):
        rounds.append(seconds_of(work.call, device))
    peak = torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else None
    launches, kernels, busy = started(work.call, device) if work.profiled else (None, None, None)
    return Measured(
        work.part,
        work.case,
        work.images,
        statistics.median(rounds),
        len(rounds),
        first,
        None if work.flops is None else work.flops * work.images,
        ceiling,
        launches,
        kernels,
        busy,
        peak,
    )


def free(device: torch.device) -> None:
    """Give back the memory of models that are gone."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


# ---- kernels ----


def started(call: Callable[[], object], device: torch.device) -> tuple[int | None, int | None, float | None]:
    """How often the host starts something in a call; the kernels, and the seconds in which the GPU works."""
    if device.type != "cuda":
        with Counter() as counter:
            call()
        return counter.ops, None, None
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        call()
        torch.cuda.synchronize(device)
    launches, kernels, busy = tally(profiler.events() or [])
    return (launches, kernels, busy) if kernels else (None, None, None)  # a profiler that sees nothing counts nothing


def tally(events: Iterable[Any]) -> tuple[int, int, float]:
    """Launches, kernels and the GPU's seconds of a profiler's events."""
    launches = kernels = 0
    busy = 0.0
    for event in events:
        if event.device_type == DeviceType.CUDA:
            if not event.is_user_annotation:
                kernels += not event.name.startswith(NO_KERNELS)
                busy += event.time_range.elapsed_us() / 1e6
        else:
            launches += event.name.startswith(LAUNCHES)
    return launches, kernels, busy


def ceiling_of(device: torch.device, *, size: int) -> float:
    """Floating-point operations a second of a bfloat16 matrix product of size x size random numbers (float32 on a CPU):
    the most of five rounds of ten."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    products = 10

    def call() -> None:
        for _ in range(products):
            left @ right

    call()
    return 2 * size**3 * products / min(seconds_of(call, device) for _ in range(5))


# ---- the budget ----


class OutOfTime(BaseException):
    """Raised wherever the program is when its time is over. No Exception: no library may take it for an error of its
    own and go on."""


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raise OutOfTime within the block once it has taken so long. In the main thread alone."""

    def stop(*_: object) -> None:
        raise OutOfTime

    handler, start = signal.signal(signal.SIGALRM, stop), time.monotonic()
    left, _ = signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3))  # of a timer that somebody else has set
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if left:
            signal.setitimer(signal.ITIMER_REAL, max(left - (time.monotonic() - start), 1e-3))
