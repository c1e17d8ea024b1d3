"""The one interface of all image sources."""

from __future__ import annotations

import copy
import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

Item = TypeVar("Item")


class DataError(ValueError):
    """Images that cannot be used as configured; the message names the key or the file and what to do."""


@dataclass(frozen=True)
class ImageRecord:
    """One image as its source holds it: encoded bytes (JPEG, PNG, ...) or uint8 pixels (H, W) or (H, W, C)."""

    image_id: str  # unique and stable in its source
    data: bytes | np.ndarray
    label: int
    path: str  # where it is, for the quarantine


@dataclass(frozen=True)
class BrokenImage:
    """An image, or a rest of a shard, that cannot be read."""

    image_id: str
    path: str
    reason: str


# What one read task reads: small, picklable, a function of the source's listing alone.
Unit = dict[str, Any]


class ImageSource(ABC):
    """A set of labelled images, cut into units of about `data.unit_images` images.

    The order of units and of images in them is fixed, so an image's place never depends on who reads it.
    """

    class_names: list[str]
    units: list[Unit]
    files: list[str]  # of the listing, for the fingerprint

    def reader(self) -> ImageSource:
        """The source without its listing: small enough to send with every task that reads a unit."""
        clone = copy.copy(self)
        clone.units, clone.files = [], []
        return clone

    @abstractmethod
    def read(self, unit: Unit) -> Iterator[ImageRecord | BrokenImage]:
        """The images of a unit, in order. What cannot be read comes as BrokenImage; nothing is dropped silently."""

    @abstractmethod
    def count(self) -> int:
        """The number of images, broken ones included as far as that can be known without decoding."""

    @abstractmethod
    def fingerprint(self) -> str:
        """A hash of the listing (names and sizes) and labels: another set of images gives another one."""


def shuffled(items: Sequence[Item]) -> list[Item]:
    """A fixed pseudo-random order: folders list images by class, and a unit must hold many classes."""
    result = list(items)
    random.Random(0).shuffle(result)
    return result


def chunks(items: Sequence[Item], size: int) -> list[list[Item]]:
    """Consecutive pieces of `size` items, the last one shorter."""
    return [list(items[start : start + size]) for start in range(0, len(items), size)]
