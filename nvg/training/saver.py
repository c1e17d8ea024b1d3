"""Checkpoints that are written while the training goes on: it stops for a copy of its state alone.

Ray Train can upload a checkpoint beside a training (`checkpoint_upload_mode`), but only a folder that has been written
already, which is most of the time; and a training without Ray (nvg/training/loop.py) has checkpoints too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import torch
import torch.distributed as distributed
from torch import Tensor

from nvg.training.parallel import is_split, local

TensorSets = Mapping[str, Mapping[str, Tensor]]  # file name -> tensors by their names


class Saver:
    """A thread that writes one checkpoint at a time, from copies in the host's memory, which each later one reuses."""

    def __init__(self, shard: int = 0, shards: int = 1) -> None:
        """shards: among how many workers the weights are split; each of them has a Saver, of its number `shard`."""
        self.shard, self.shards = shard, shards
        # The threads of the workers talk to each other while the training does the same.
        self.group = distributed.new_group(backend="gloo") if shards > 1 else None
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[None] | None = None
        self._copies: dict[tuple[str, str], Tensor] = {}

    def save(self, tensors: TensorSets, write: Callable[[TensorSets], None]) -> None:
        """Copy the tensors, and have the thread call `write` with the copies. Waits for the checkpoint before, and
        raises its error.

        The copies are whole tensors and, of those that are split, this worker's rows. What all workers have is copied
        by the first one alone.
        """
        self.wait()
        copies = {
            name: {
                key: self._copy(name, key, local(value.detach()))
                for key, value in some.items()
                if self.shard == 0 or is_split(value)
            }
            for name, some in tensors.items()
        }
        copied = None
        if any(value.is_cuda for some in tensors.values() for value in some.values()):
            copied = torch.cuda.Event()  # behind the copies, which the GPU makes before it changes a weight
            copied.record()
        self._writing = self._thread.submit(_write, write, copies, copied)

    def _copy(self, name: str, key: str, value: Tensor) -> Tensor:
        """A copy on the CPU; of a GPU's tensor one that is on its way."""
        copy = self._copies.get((name, key))
        if copy is None or copy.shape != value.shape or copy.dtype != value.dtype:
            copy = torch.empty(value.shape, dtype=value.dtype, pin_memory=value.is_cuda)
            self._copies[name, key] = copy
        return copy.copy_(value, non_blocking=True)

    @property
    def failed(self) -> bool:
        """Whether the checkpoint in hand has ended with an error, which `wait` raises."""
        return self._writing is not None and self._writing.done() and self._writing.exception() is not None

    def wait(self) -> None:
        """Wait until the checkpoint in hand is written. Raises its error, once."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        """Let the thread finish the checkpoint in hand. Raises its error, unless there is another one."""
        self._thread.shutdown()
        if kind is None:
            self.wait()


def _write(write: Callable[[TensorSets], None], copies: TensorSets, copied: torch.cuda.Event | None) -> None:
    if copied is not None:
        copied.synchronize()
    write(copies)
