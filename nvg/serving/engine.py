"""Dynamic batching: images of many requests are drawn together, stage by stage.

A request is a Job of one or more Units, an image each; units wait in one queue. When the sampler is free it takes the
oldest unit and whichever others can be drawn with it (same model, same number of flow steps; class, seed, guidance and
given stages may differ). The sampler runs in one thread of its own, HTTP in the event loop. What an image is does not
depend on its batch (nvg/generator/sampler.py), so batching changes times alone.

Imports no Ray and no HTTP library: nvg/serving/deployment.py and nvg/serving/api.py stand around it.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import math
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np

from nvg.config import SamplerConfig
from nvg.generator import Given, Sampler
from nvg.serving.errors import RequestError

Result = TypeVar("Result")
logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Served:
    """A model that is being served."""

    name: str
    sampler: Sampler
    fingerprint: str
    created: int  # Unix time


@dataclass(frozen=True)
class StageDone:
    """An image of a job after a stage."""

    index: int  # of the image in its job
    stage: int
    structure: np.ndarray  # (h, w) int64
    preview: np.ndarray  # uint8 (H, W, C)


@dataclass(frozen=True)
class ImageDone:
    """A finished image of a job."""

    index: int
    pixels: np.ndarray  # uint8 (H, W, C)
    structure: np.ndarray  # (h, w) int64, the last stage's
    content: list[list[int]]  # stages 0 ... K


@dataclass(frozen=True, eq=False)
class Unit:
    """One image to draw."""

    index: int
    class_index: int
    seed: int
    job: Job = field(repr=False)


@dataclass(eq=False)
class Job:
    """The images of one request."""

    model: Served
    classes: list[int]
    seeds: list[int]
    settings: SamplerConfig
    given: Given | None = None  # of one image; all images of the job have it
    watched: frozenset[int] = frozenset()  # stages whose previews are wanted
    cancelled: bool = False
    arrived: float = field(default_factory=time.perf_counter)
    began: float = 0.0  # of its first batch; these three in seconds of time.perf_counter
    ended: float = 0.0  # of its last image so far
    batches: list[int] = field(default_factory=list)
    results: asyncio.Queue[Any] = field(default_factory=asyncio.Queue)

    def units(self) -> list[Unit]:
        """One a picture."""
        pairs = enumerate(zip(self.classes, self.seeds, strict=True))
        return [Unit(index, class_index, seed, self) for index, (class_index, seed) in pairs]


class Observer(Protocol):
    """Where the engine's figures go (nvg/serving/metrics.py)."""

    def queue(self, images: int) -> None: ...
    def batch(self, images: int) -> None: ...
    def stage(self, stage: int, seconds: float) -> None: ...


class Engine:
    """One sampler thread and the queue in front of it. Made and used in a running event loop."""

    def __init__(self, *, max_batch: int, max_queue: int, batch_wait_ms: float, observer: Observer) -> None:
        self.max_batch, self.max_queue = max_batch, max_queue
        self._wait = batch_wait_ms / 1000
        self._observer = observer
        self._pending: deque[Unit] = deque()
        self._wake = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sampler")
        self._loop = asyncio.get_running_loop()
        self._last = 0  # images of the last batch
        self._seconds_an_image = 0.1  # a moving average, for Retry-After
        self._task = self._loop.create_task(self._run())

    @property
    def queued(self) -> int:
        """Images that wait."""
        return len(self._pending)

    @property
    def alive(self) -> bool:
        """Whether batches are still being made."""
        return not self._task.done()

    @property
    def retry_after(self) -> int:
        """Seconds until the queue of now is worked off, at least 1."""
        return max(1, math.ceil(len(self._pending) * self._seconds_an_image))

    def require_room(self, images: int) -> None:
        """Raises RequestError 429 when the queue has no room for so many."""
        if len(self._pending) + images > self.max_queue:
            raise RequestError(
                429,
                f"{len(self._pending)} images are waiting and at most {self.max_queue} may: try again in "
                f"{self.retry_after} s",
                code="queue_full",
                retry_after=self.retry_after,
            )

    def submit(self, job: Job) -> None:
        """Queue a job's images; listen to `results` then. Raises RequestError 429 when the queue is full."""
        units = job.units()
        self.require_room(len(units))
        self._pending.extend(units)
        self._observer.queue(len(self._pending))
        self._wake.set()

    async def results(self, job: Job) -> AsyncGenerator[StageDone | ImageDone]:
        """The stages and images of a submitted job as they come. Closing it cancels the rest
        (`contextlib.aclosing`).

        Raises RequestError 500 when the sampler failed.
        """
        missing = len(job.classes)
        try:
            while missing:
                result = await job.results.get()
                if isinstance(result, Exception):
                    raise RequestError(500, "the sampler failed; the server's log has the reason") from result
                if isinstance(result, ImageDone):
                    missing -= 1
                    job.ended = time.perf_counter()
                yield result
        finally:
            self._cancel(job)

    async def call(self, function: Callable[[], Result]) -> Result:
        """Run a function of the model in the sampler's thread, between two batches."""
        return await self._loop.run_in_executor(self._thread, function)

    async def close(self) -> None:
        """Stop; images in work are finished, those that wait are not."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._thread.shutdown(wait=True)

    # ---- the queue ----

    def _cancel(self, job: Job) -> None:
        job.cancelled = True
        self._pending = deque(unit for unit in self._pending if unit.job is not job)
        self._observer.queue(len(self._pending))

    def _take(self) -> list[Unit]:
        """The oldest unit and those that can be drawn with it, at most a batch."""
        first = self._pending[0].job
        batch: list[Unit] = []
        rest: deque[Unit] = deque()
        for unit in self._pending:
            fits = unit.job.model is first.model and unit.job.settings.flow_steps == first.settings.flow_steps
            (batch if fits and len(batch) < self.max_batch else rest).append(unit)
        self._pending = rest
        self._observer.queue(len(rest))
        return batch

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            if len(self._pending) < min(self._last, self.max_batch):  # more were drawn together a moment ago
                await asyncio.sleep(self._wait)
            if not self._pending:
                self._wake.clear()
                continue
            batch = self._take()
            self._last = len(batch)
            begun = time.perf_counter()
            for unit in batch:
                unit.job.began = unit.job.began or begun
                unit.job.batches.append(len(batch))
            self._observer.batch(len(batch))
            try:
                await self._loop.run_in_executor(self._thread, self._draw, batch)
            except Exception as error:  # of whatever kind: the requests of this batch get it, the next ones go on
                logger.exception("a batch of %d images failed", len(batch))
                self._publish([(unit.job, error) for unit in batch])
            took = (time.perf_counter() - begun) / len(batch)
            self._seconds_an_image += 0.2 * (took - self._seconds_an_image)
            if not self._pending:
                self._wake.clear()

    def _publish(self, results: list[tuple[Job, Any]]) -> None:
        for job, result in results:
            job.results.put_nowait(result)

    # ---- in the sampler's thread ----

    def _draw(self, batch: list[Unit]) -> None:
        sampler = batch[0].job.model.sampler
        settings = [dataclasses.asdict(unit.job.settings) for unit in batch]
        flow_steps = [one.pop("flow_steps") for one in settings][0]  # alike in a batch
        stages = sampler.stages(
            [unit.class_index for unit in batch],
            seed=[unit.seed for unit in batch],
            given=[unit.job.given for unit in batch],
            flow_steps=flow_steps,
            **{name: [one[name] for one in settings] for name in settings[0]},
        )
        last = sampler.last_stage
        begun = time.perf_counter()
        for step in stages:
            alive = [row for row, unit in enumerate(batch) if not unit.job.cancelled]
            if not alive:
                return  # every client has gone: stop between two stages
            watched = [row for row in alive if step.stage in batch[row].job.watched]
            shown = alive if step.stage == last else watched
            results: list[tuple[Job, Any]] = []
            if shown:
                pixels = step.images(shown)
                maps = step.structure_map[shown].cpu().numpy()
                for row, picture, structure in zip(shown, pixels, maps, strict=True):
                    unit = batch[row]
                    if row in watched:
                        results.append((unit.job, StageDone(unit.index, step.stage, structure, picture)))
                    if step.stage == last:
                        content = [tokens[row].tolist() for tokens in step.content]
                        results.append((unit.job, ImageDone(unit.index, picture, structure, content)))
            self._observer.stage(step.stage, time.perf_counter() - begun)
            if results:
                self._loop.call_soon_threadsafe(self._publish, results)
            begun = time.perf_counter()
