"""The tensors of a training checkpoint, in one file or split by rows over the files of several workers.

    model.safetensors                   all tensors, whole
    model-00001-of-00004.safetensors    the second quarter of every tensor's rows

Tensors that are not split (buffers, step counts) are in the first file alone. A reader takes the rows that it needs
from the files that have them, so a checkpoint of any number of workers loads into any other number.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import IO, Any

import torch
import torch.distributed as distributed
from safetensors import SafetensorError, safe_open
from torch import Tensor

from nvg import storage
from nvg.artifacts.files import write_safetensors
from nvg.training.parallel import local_rows
from nvg.training.saver import Saver, TensorSets


def file_name(name: str, shard: int, shards: int) -> str:
    """The file with a worker's share of the tensors `name`."""
    return f"{name}.safetensors" if shards == 1 else f"{name}-{shard:05d}-of-{shards:05d}.safetensors"


def write_shards(url: str, tensor_sets: TensorSets, saver: Saver) -> dict[str, Any] | None:
    """Write this worker's rows into the checkpoint's folder, and wait for the other workers.

    tensor_sets: the rows of each file name. Returns, on the first worker alone, size and CRC-32 of all workers' files.
    """
    written = {}
    for name, rows in tensor_sets.items():
        name_here = file_name(name, saver.shard, saver.shards)
        with storage.file_writer(storage.join(url, name_here)) as file:
            checked = Checked(file)
            write_safetensors(checked, rows)  # a tensor at a time: the training's thread hardly waits for Python
        written[name_here] = {"size": checked.size, "crc32": checked.crc32}
    everyone: list[Any] = [None] * saver.shards
    distributed.all_gather_object(everyone, written, group=saver.group)
    return {name: mark for files in everyone for name, mark in files.items()} if saver.shard == 0 else None


class Checked:
    """A file that is written, with its size and CRC-32 so far."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.size, self.crc32 = file, 0, 0

    def write(self, data: bytes | memoryview) -> None:
        """Write some bytes."""
        self.file.write(data)
        self.size, self.crc32 = self.size + len(data), zlib.crc32(data, self.crc32)


class Saved:
    """The tensors `name` of a checkpoint's local folder. Raises ValueError for a file that is damaged or missing."""

    def __init__(self, folder: Path, name: str, shards: int) -> None:
        self.name = name
        self._files = []
        for shard in range(shards):
            path = folder / file_name(name, shard, shards)
            try:
                self._files.append(safe_open(path, framework="pt"))
            except (OSError, SafetensorError) as error:
                raise ValueError(f"{path.name} is damaged ({error})") from None
        self._slices: dict[str, list[Any]] = {}  # slices of a tensor's rows, in their order
        for file in self._files:
            keys = file.keys()
            for key in keys:
                self._slices.setdefault(key, []).append(file.get_slice(key))

    @property
    def names(self) -> set[str]:
        """The names of all tensors."""
        return set(self._slices)

    def shape(self, name: str) -> torch.Size:
        """The shape of a whole tensor."""
        shapes = [rows.get_shape() for rows in self._slices[name]]
        return torch.Size([sum(shape[0] for shape in shapes), *shapes[0][1:]] if len(shapes) > 1 else shapes[0])

    def read(self, name: str, like: Tensor) -> Tensor:
        """A tensor, or this worker's rows of it where `like` is split over workers."""
        rows, slices, shape = local_rows(like), self._slices[name], self.shape(name)
        if not shape:
            return next(file for file in self._files if name in set(file.keys())).get_tensor(name)
        rows = range(shape[0]) if rows is None else rows
        pieces, first = [], 0
        for rows_of_file in slices:
            count = rows_of_file.get_shape()[0]
            start, stop = max(rows.start - first, 0), min(rows.stop - first, count)
            if start < stop:
                pieces.append(rows_of_file[start:stop])
            first += count
        return torch.cat(pieces) if pieces else slices[0][0:0]
