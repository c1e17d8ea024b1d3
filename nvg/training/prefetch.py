"""Batches fetched ahead by a thread, so that opening a stream, reading it and moving it to a GPU go on beside the
training step."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Generic, TypeVar

import torch

from nvg.training.task import Batch

T = TypeVar("T")
_PATIENCE = 0.2  # seconds between looks whether the stream was closed


class Prefetch(Generic[T]):
    """An iterator over the same items in the same order; up to `depth` of them wait. An error comes at its place."""

    def __init__(self, items: Iterator[T], depth: int = 4) -> None:
        self._queue: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(depth)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._fetch, args=(items,), name="prefetch", daemon=True)
        self._thread.start()

    def _fetch(self, items: Iterator[T]) -> None:
        try:
            for item in items:
                if not self._put((item, None)):
                    return
            self._put((None, StopIteration()))
        except BaseException as error:  # any error is the reader's
            self._put((None, error))

    def _put(self, entry: tuple[T | None, BaseException | None]) -> bool:
        while not self._closed.is_set():
            try:
                self._queue.put(entry, timeout=_PATIENCE)
                return True
            except queue.Full:
                continue
        return False

    def __iter__(self) -> Prefetch[T]:
        return self

    def __next__(self) -> T:
        item, error = self._queue.get()
        if error is not None:
            self._queue.put((None, error))  # for whoever asks again
            raise error
        return item  # type: ignore[return-value]

    def close(self) -> None:
        """Stop fetching. What was fetched is lost."""
        self._closed.set()


class Feed:
    """The batches of a training in their order, fetched ahead. Those for a GPU are there already, or on their way: a
    stream of its own copies them from page-locked memory while the GPU computes."""

    def __init__(self, batches: Iterator[Batch], device: torch.device) -> None:
        self.device = device
        self._copying = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._ahead = Prefetch(map(self._send, batches))

    def _send(self, batch: Batch) -> tuple[Batch, torch.cuda.Event | None]:
        """In the thread: the batch on the device, and what happens when it has come."""
        if self._copying is None:
            return batch, None
        with torch.cuda.stream(self._copying):
            sent = {name: value.pin_memory().to(self.device, non_blocking=True) for name, value in batch.items()}
            return sent, self._copying.record_event()

    def __iter__(self) -> Feed:
        return self

    def __next__(self) -> Batch:
        batch, sent = next(self._ahead)
        if sent is not None:
            computing = torch.cuda.current_stream(self.device)
            computing.wait_event(sent)
            for value in batch.values():  # whose memory the copying stream would take again while it is in use
                value.record_stream(computing)
        return batch

    def close(self) -> None:
        """Stop fetching. What was fetched is lost."""
        self._ahead.close()
