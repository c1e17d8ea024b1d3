"""The idx files of Fashion-MNIST and its relatives (MNIST, KMNIST, EMNIST), gzipped or plain.

`data.train` names the images file, `...-images-idx3-ubyte.gz`; the labels file is `...-labels-idx1-ubyte.gz` beside it.
The format holds no class names: give data.class_names.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator
from functools import lru_cache

import numpy as np

from nvg import storage
from nvg.config import DataConfig
from nvg.data.classes import TrainingClasses
from nvg.data.records import BrokenImage, ImageRecord, ImageSource, Unit
from nvg.errors import DataError


class IdxSource(ImageSource):
    """Images and labels of one pair of idx files; an image's id is its number."""

    def __init__(self, config: DataConfig, path: str, training: TrainingClasses | None = None) -> None:
        self.path = storage.absolute(path)
        folder, _, name = self.path.rpartition("/")
        labels_name = name.replace("images-idx3", "labels-idx1")
        if labels_name == name:
            raise DataError(f"{path}: data.source=idx takes the images file, named ...-images-idx3-ubyte(.gz)")
        self.labels_path = f"{folder}/{labels_name}"
        self.files = {}
        for file in (self.path, self.labels_path):
            self.files |= storage.expand_sizes(file, (name.rpartition("-")[2],))
        (count,), labels = _read(self.labels_path, dimensions=1)
        (images, *_), _ = _read(self.path, dimensions=3, head=True)
        if len(labels) < count or images != count:
            raise DataError(
                f"{self.labels_path} holds {len(labels)} of its {count} labels, for the {images} images of "
                f"{self.path}: fetch both files again"
            )
        self.classes = self.class_names = []
        self.lowest = int(labels.min()) if len(labels) else None
        self.highest = int(labels.max()) if len(labels) else None
        self.units: list[Unit] = [
            {"start": start, "labels": labels[start : start + config.unit_images].tolist()}
            for start in range(0, len(labels), config.unit_images)
        ]

    def _read(self, unit: Unit) -> Iterator[ImageRecord | BrokenImage]:
        images = _images(self.path)
        for number, label in enumerate(unit["labels"], start=unit["start"]):
            if number >= len(images):  # the same row from every unit: it is counted once
                reason = f"the file is cut off or damaged after {len(images)} images: fetch it again"
                yield BrokenImage(self.path.rpartition("/")[2], self.path, reason)
                return
            yield ImageRecord(str(number), images[number], label, f"{self.path}#{number}")

    def _size(self, unit: Unit) -> int:
        return len(unit["labels"])


@lru_cache(maxsize=2)
def _images(path: str) -> np.ndarray:
    """All images of a file. Cached: a process reads many units of it, and gzip must be read from its start."""
    return _read(path, dimensions=3)[1]


def _read(path: str, dimensions: int, *, head: bool = False) -> tuple[tuple[int, ...], np.ndarray]:
    """The shape that an idx file names, and its array: as many whole rows as it holds (head: none).

    Raises DataError naming the file.
    """
    header = 4 + 4 * dimensions
    raw = _unzip(path, header if head else None) if path.endswith(".gz") else storage.read_bytes(path)
    if len(raw) < header or raw[:3] != b"\0\0\x08" or raw[3] != dimensions:
        raise DataError(f"{path} is not an idx file of {dimensions} dimensions of bytes: fetch it again")
    shape = struct.unpack(f">{dimensions}I", raw[4:header])
    row = math.prod(shape[1:])
    rows = 0 if head or not row else min(shape[0], (len(raw) - header) // row)
    if rows == 0:  # of any size: a damaged header may name more than an array can have
        return shape, np.zeros((0,) * dimensions, np.uint8)
    return shape, np.frombuffer(raw, np.uint8, rows * row, header).reshape(rows, *shape[1:])


def _unzip(path: str, most: int | None) -> bytes:
    """Unzip a file, or at least its first `most` bytes. A file that is cut off or damaged gives the bytes before."""
    pieces: list[bytes] = []
    stream = zlib.decompressobj(zlib.MAX_WBITS | 16)
    with storage.open(path) as file:
        while piece := file.read(1 << 16):
            try:
                pieces.append(stream.decompress(piece))
                while stream.unused_data:  # a file may be several streams, one after the other
                    rest, stream = stream.unused_data, zlib.decompressobj(zlib.MAX_WBITS | 16)
                    pieces.append(stream.decompress(rest))
            except zlib.error as error:
                if not pieces:
                    raise DataError(f"{path} is not a gzip file: {error}") from None
                break
            if most is not None and sum(map(len, pieces)) >= most:
                break
    return b"".join(pieces)
