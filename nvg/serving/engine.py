"""Dynamic batching: images of many requests are drawn together, stage by stage.

A request is a Job of one or more images, which wait in one queue. When the sampler is free it takes the oldest image
and whichever others can be drawn with it (same model, same number of flow steps; class, seed, guidance and
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
from typing import Protocol, TypeVar

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
    licence: str | None = None  # of the weights, where their folder names one


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


Outcome = StageDone | ImageDone | Exception  # an Exception: the sampler failed


@dataclass(frozen=True, eq=False)
class QueuedImage:
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
    watched: frozenset[int] = frozenset()  # stages whose previews are sent
    cancelled: bool = False
    arrived: float = field(default_factory=time.perf_counter)
    sampling_start: float = 0.0  # of its first batch; these three in seconds of time.perf_counter
    sampling_end: float = 0.0  # of its last image so far
    batches: list[int] = field(default_factory=list)
    results: asyncio.Queue[Outcome] = field(default_factory=asyncio.Queue)

    def queued_images(self) -> list[QueuedImage]:
        """The images of the job, as the queue holds them."""
        pairs = enumerate(zip(self.classes, self.seeds, strict=True))
        return [QueuedImage(index, class_index, seed, self) for index, (class_index, seed) in pairs]


class EngineObserver(Protocol):
    """The receiver of the engine's figures (nvg/serving/metrics.py)."""

    def queue(self, images: int) -> None: ...
    def batch(self, images: int) -> None: ...
    def stage(self, stage: int, seconds: float) -> None: ...


class Engine:
    """One sampler thread and the queue in front of it. Made and used in a running event loop."""

    def __init__(self, *, max_batch: int, max_queue: int, batch_wait_ms: float, observer: EngineObserver) -> None:
        self.max_batch, self.max_queue = max_batch, max_queue
        self._wait = batch_wait_ms / 1000
        self._observer = observer
        self._pending: deque[QueuedImage] = deque()
        self._wake = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sampler")
        self._loop = asyncio.get_running_loop()
        self._last = 0  # images of the last batch
        self._seconds_per_image = 0.1  # a moving average, for Retry-After
        self._task = self._loop.create_task(self._run())

    @property
    def queued(self) -> int:
        """The number of images that wait."""
        return len(self._pending)

    @property
    def alive(self) -> bool:
        """Whether batches are still being made."""
        return not self._task.done()

    @property
    def retry_after(self) -> int:
        """Seconds until the queue of now is worked off, at least 1."""
        return max(1, math.ceil(len(self._pending) * self._seconds_per_image))

    def require_room(self, images: int) -> None:
        """Raises RequestError 429 when the queue has no room for this number of images."""
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
        images = job.queued_images()
        self.require_room(len(images))
        self._pending.extend(images)
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
                    job.sampling_end = time.perf_counter()
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
        self._pending = deque(image for image in self._pending if image.job is not job)
        self._observer.queue(len(self._pending))

    def _take(self) -> list[QueuedImage]:
        """The oldest image and those that can be drawn with it, at most a batch."""
        first = self._pending[0].job
        batch: list[QueuedImage] = []
        rest: deque[QueuedImage] = deque()
        for image in self._pending:
            fits = image.job.model is first.model and image.job.settings.flow_steps == first.settings.flow_steps
            (batch if fits and len(batch) < self.max_batch else rest).append(image)
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
            start = time.perf_counter()
            for image in batch:
                image.job.sampling_start = image.job.sampling_start or start
                image.job.batches.append(len(batch))
            self._observer.batch(len(batch))
            try:
                await self._loop.run_in_executor(self._thread, self._draw, batch)
            except Exception as error:  # of whatever kind: the requests of this batch get it, the next ones go on
                logger.exception("a batch of %d images failed", len(batch))
                self._publish([(image.job, error) for image in batch])
            took = (time.perf_counter() - start) / len(batch)
            self._seconds_per_image += 0.2 * (took - self._seconds_per_image)
            if not self._pending:
                self._wake.clear()

    def _publish(self, results: list[tuple[Job, Outcome]]) -> None:
        for job, result in results:
            job.results.put_nowait(result)

    # ---- in the sampler's thread ----

    def _draw(self, batch: list[QueuedImage]) -> None:
        sampler = batch[0].job.model.sampler
        settings = [dataclasses.asdict(image.job.settings) for image in batch]
        flow_steps = [one.pop("flow_steps") for one in settings][0]  # alike in a batch
        stages = sampler.stages(
            [image.class_index for image in batch],
            seed=[image.seed for image in batch],
            given=[image.job.given for image in batch],
            flow_steps=flow_steps,
            **{name: [one[name] for one in settings] for name in settings[0]},
        )
        last = sampler.last_stage
        start = time.perf_counter()
        for step in stages:
            alive = [row for row, image in enumerate(batch) if not image.job.cancelled]
            if not alive:
                return  # every client has gone: stop between two stages
            watched = [row for row in alive if step.stage in batch[row].job.watched]
            shown = alive if step.stage == last else watched
            results: list[tuple[Job, Outcome]] = []
            if shown:
                pixels = step.images(shown)
                maps = step.structure_map[shown].cpu().numpy()
                for row, picture, structure in zip(shown, pixels, maps, strict=True):
                    image = batch[row]
                    if row in watched:
                        results.append((image.job, StageDone(image.index, step.stage, structure, picture)))
                    if step.stage == last:
                        content = [tokens[row].tolist() for tokens in step.content]
                        results.append((image.job, ImageDone(image.index, picture, structure, content)))
            self._observer.stage(step.stage, time.perf_counter() - start)
            if results:
                self._loop.call_soon_threadsafe(self._publish, results)
            start = time.perf_counter()
