"""The interface of all image sources."""

from __future__ import annotations

import copy
import itertools
import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from nvg import storage
from nvg.errors import StorageError

Item = TypeVar("Item")


@dataclass(frozen=True)
class ImageRecord:
    """One image as its source holds it: encoded bytes (JPEG, PNG, ...) or uint8 pixels (H, W) or (H, W, C)."""

    image_id: str  # unique and stable in its source
    data: bytes | np.ndarray
    label: int
    path: str  # of the file it is in, for the quarantine


@dataclass(frozen=True)
class BrokenImage:
    """An image, or the rest of a shard, that cannot be read."""

    image_id: str
    path: str
    reason: str


# The images of one read task, as their source describes them: small, picklable, a function of its listing alone.
Unit = dict[str, Any]


class ImageSource(ABC):
    """A set of labelled images, cut into units of about `data.unit_images` images.

    The order of units and of images in them is fixed, so an image's position never depends on who reads it.
    """

    classes: list[str]  # what tells them apart in the files (names, synset ids), by label; [] where only numbers do
    class_names: list[str]  # as the source holds them; [] where it has none and open_source names them
    lowest: int | None = None  # of the numbers that stand for classes in the files, where these can be told ...
    highest: int | None = None  # ... without reading images
    empty: Sequence[str] = ()  # classes that belong to the source's layout and have no image
    units: list[Unit]
    files: dict[str, int]  # of the listing, with their bytes, for the fingerprint

    def reader(self) -> ImageSource:
        """A copy of the source without its listing, small enough to send with every task that reads a unit."""
        clone = copy.copy(self)
        clone.units, clone.files = [], {}
        return clone

    @abstractmethod
    def _read(self, unit: Unit) -> Iterator[ImageRecord | BrokenImage]:
        """All images of a unit, in order. An unreadable one comes as BrokenImage; none is dropped silently."""

    @abstractmethod
    def _size(self, unit: Unit) -> int:
        """The number of images of a unit, broken ones included as far as that can be known without decoding."""

    def read(self, unit: Unit) -> Iterator[ImageRecord | BrokenImage]:
        """The images of a unit, in order, as far as `limit` leaves them."""
        return map(_printable, itertools.islice(self._read(unit), unit.get("most")))

    def size(self, unit: Unit) -> int:
        """The number of images that `read` gives."""
        size = self._size(unit)
        return min(size, unit.get("most", size))

    def count(self) -> int:
        """The number of images of all units."""
        with ThreadPoolExecutor(16) as pool:  # an archive must be walked through to be counted
            return sum(pool.map(self.size, self.units))

    def limit(self, images: int) -> None:
        """Keep the first `images` images alone (`most` of a unit is the number of its images that are read)."""
        units, missing = [], images
        for unit in self.units:
            size = self.size(unit)
            if missing > 0:
                units.append(unit if size <= missing else unit | {"most": missing})
            missing -= size
            if missing <= 0:
                break
        self.units = units

    def fingerprint(self) -> str:
        """A hash of the listing (names and sizes). Another set of images has another one."""
        return storage.fingerprint(self.files, storage.common_folder(self.files))


def _printable(record: ImageRecord | BrokenImage) -> ImageRecord | BrokenImage:
    """The record with names that Parquet can hold: bytes that are no Unicode, which file systems and archives allow in
    names, are spelled out."""
    names = {name: getattr(record, name) for name in ("image_id", "path")}
    printable = {name: value.encode(errors="backslashreplace").decode() for name, value in names.items()}
    return record if printable == names else replace(record, **printable)


def read_image(image_id: str, path: str, label: int) -> ImageRecord | BrokenImage:
    """Read an image that is a file of its own. A missing or damaged file is a BrokenImage. A store that fails raises
    StorageError: an outage breaks no images."""
    try:
        return ImageRecord(image_id, storage.read_bytes(path), label, path)
    except StorageError:
        raise
    except OSError as error:
        return BrokenImage(image_id, path, f"{type(error).__name__}: {error}")


def shuffled(items: Sequence[Item]) -> list[Item]:
    """The items in a fixed pseudo-random order: folders list images by class, and a unit must hold many classes."""
    result = list(items)
    random.Random(0).shuffle(result)
    return result


def chunks(items: Sequence[Item], size: int) -> list[list[Item]]:
    """Consecutive pieces of `size` items, the last one shorter."""
    return [list(items[start : start + size]) for start in range(0, len(items), size)]
