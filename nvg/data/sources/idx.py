"""The idx files of Fashion-MNIST and its relatives (MNIST, KMNIST, EMNIST), gzipped or plain.

`data.train` names the images file, `...-images-idx3-ubyte.gz`; the labels file is `...-labels-idx1-ubyte.gz` beside it.
The format holds no class names: give data.class_names.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Iterator
from functools import lru_cache

import numpy as np

from nvg import storage
from nvg.config import DataConfig
from nvg.data.records import BrokenImage, DataError, ImageRecord, ImageSource, Unit


class IdxSource(ImageSource):
    """Images and labels of one pair of idx files; an image's id is its number."""

    def __init__(self, config: DataConfig, path: str) -> None:
        self.path = path
        self.labels_path = path.replace("images-idx3", "labels-idx1")
        if self.labels_path == path:
            raise DataError(f"{path}: data.source=idx takes the images file, named ...-images-idx3-ubyte(.gz)")
        self.files = [self.path, self.labels_path]
        labels = _read(self.labels_path, dimensions=1).tolist()
        classes = max(labels, default=-1) + 1
        names = config.class_names
        self.class_names = list(names) if names and len(names) >= classes else [str(label) for label in range(classes)]
        self.units: list[Unit] = [
            {"start": start, "labels": labels[start : start + config.unit_images]}
            for start in range(0, len(labels), config.unit_images)
        ]

    def read(self, unit: Unit) -> Iterator[ImageRecord | BrokenImage]:
        try:
            images = _images(self.path)
        except DataError as error:
            yield BrokenImage(f"{unit['start']}", self.path, str(error))
            return
        for number, label in enumerate(unit["labels"], start=unit["start"]):
            place = f"{self.path}#{number}"
            if number >= len(images):
                yield BrokenImage(str(number), place, "the images file ends before the labels file")
            else:
                yield ImageRecord(str(number), images[number], label, place)

    def count(self) -> int:
        return sum(len(unit["labels"]) for unit in self.units)

    def fingerprint(self) -> str:
        return storage.fingerprint(self.files, self.path.rsplit("/", 1)[0])


@lru_cache(maxsize=2)
def _images(path: str) -> np.ndarray:
    """All images of a file: kept, since a process reads many units of it and gzip has no way to its middle."""
    return _read(path, dimensions=3)


def _read(path: str, dimensions: int) -> np.ndarray:
    """The array of an idx file, as many whole rows as it holds. Raises DataError naming the file."""
    raw = storage.read_bytes(path)
    if path.endswith(".gz"):
        stream = zlib.decompressobj(zlib.MAX_WBITS | 16)  # gives what there is of a truncated file
        try:
            raw = stream.decompress(raw)
        except (zlib.error, gzip.BadGzipFile) as error:
            raise DataError(f"{path} is not a gzip file: {error}") from None
    header = 4 + 4 * dimensions
    if len(raw) < header or raw[:3] != b"\0\0\x08" or raw[3] != dimensions:
        raise DataError(f"{path} is not an idx file of {dimensions} dimensions of bytes")
    shape = struct.unpack(f">{dimensions}I", raw[4:header])
    row = int(np.prod(shape[1:], dtype=np.int64))
    rows = min(shape[0], (len(raw) - header) // row)
    return np.frombuffer(raw, np.uint8, rows * row, header).reshape(rows, *shape[1:])
