"""The end of a training on several workers by an error that would come again: one worker's ends the job.

The others may wait for that worker in a collective, or fail there with errors that say less and that Ray Train would
try again. So the error is told to all of them: whoever starts after it does no work.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

from nvg.errors import NvgError, final_error

SETTLING = 5.0  # seconds in which all workers may come to the same end, as by a loss that is not finite


class Verdict:
    """The first error that would come again, and how many workers have one."""

    def __init__(self) -> None:
        self.error: NvgError | None = None
        self.ranks: set[int] = set()

    def add(self, rank: int, error: NvgError) -> int:
        """A worker's error; returns how many workers have one."""
        self.error = self.error or error
        self.ranks.add(rank)
        return len(self.ranks)

    def get(self) -> tuple[NvgError | None, int]:
        """The first error, None where there is none, and how many workers have one."""
        return self.error, len(self.ranks)


class Told(Protocol):
    """A Verdict, here or in another process."""

    def add(self, rank: int, error: NvgError) -> int: ...
    def get(self) -> tuple[NvgError | None, int]: ...


def settled(work: Callable[[], Any], verdict: Told, *, rank: int, world: int, seconds: float = SETTLING) -> dict:
    """{"value": the result of `work`}, or {"error": the error that ends the job}, of this worker or of one before it.

    Raises what `work` raises where a retry may help, and where the other workers must be ended, which wait for this
    one: they have `seconds` to come to such an error by themselves.
    """
    error, _ = verdict.get()
    if error is not None:  # workers that were started again after it
        return {"error": error}
    try:
        return {"value": work()}
    except Exception as raised:
        final = final_error(raised)
        if final is None:
            raise
        ended, until = verdict.add(rank, final), time.monotonic() + seconds
        while ended < world and time.monotonic() < until:
            time.sleep(0.1)
            ended = verdict.get()[1]
        if ended < world:
            raise
        return {"error": verdict.get()[0]}
