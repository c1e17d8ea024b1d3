"""The real images that samples are compared with: a split of the data set, or an .npz file of the ADM suite."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from typing import Any

import torch

from nvg import config as configuration
from nvg import storage
from nvg.config import Config
from nvg.data import open_source
from nvg.evaluation.features import BATCH
from nvg.evaluation.metrics import Moments
from nvg.evaluation.npz import read_images, read_moments
from nvg.evaluation.work import ReadUnit, Reconstruct, TakeFeatures


class ReferenceImages(ABC):
    """A set of real images. Their features are kept in a file whose name follows from the images and the network."""

    name: str  # as evaluate.reference has it: train, test, or the file
    description: str  # in the name of the reference: "10000 test images"
    labelled: bool  # whether its images have labels
    fingerprint: str
    preparation: Any  # how the images are prepared, where the configuration decides

    @abstractmethod
    def count(self) -> int:
        """The number of images."""

    @abstractmethod
    def work(self) -> list[ReadUnit] | list[TakeFeatures]:
        """The work that gives the features of all images."""

    def published_moments(self) -> Moments | None:
        """Moments that are published with the images and stand for more of them."""
        return None

    def features_file(self, output: str, network: str) -> str:
        """The file of the features by a network, path or URL."""
        key = configuration.digest("reference", self.fingerprint, self.preparation, network)
        return storage.join(output, f"reference-{key}.safetensors")


class SplitImages(ReferenceImages):
    """A split of the data set, or the first images of it."""

    labelled = True

    def __init__(self, config: Config, name: str, most: int | None = None) -> None:
        """name: train or test. most: how many images at most."""
        data = config.data
        self.name = self.description = name
        self.source = open_source(data, name)
        self.fingerprint = self.source.fingerprint()
        if data.resize == "lanczos8":  # the centre is another picture: other features, and another protocol
            self.fingerprint += f" {data.resize} {data.crop_scale:g}"
        self.preparation = [data.image_size, data.channels, data.limit if name == "train" else None]
        if most is not None:
            self.source.limit(most)

    def count(self) -> int:
        """The number of images, as far as it is known before they are read."""
        return self.source.count()

    def work(self) -> list[ReadUnit]:
        """The units, to be read for their features."""
        return [ReadUnit(self.name, unit, TakeFeatures) for unit in self.source.units]

    def reconstruction_work(self) -> list[ReadUnit]:
        """The units, to be read for reconstruction."""
        return [ReadUnit(self.name, unit, Reconstruct) for unit in self.source.units]


class NpzImages(ReferenceImages):
    """An .npz file as the ADM evaluation suite publishes it (nvg/evaluation/npz.py), path or URL."""

    labelled = False
    description = "reference"
    preparation = None

    def __init__(self, name: str) -> None:
        self.name = name
        (size,) = storage.list_sizes(name).values()
        self.fingerprint = configuration.digest(name.rpartition("/")[2], size)

    @cached_property
    def _work(self) -> list[TakeFeatures]:
        """The images are read here: a zip member has no way to its middle."""
        with storage.open(self.name) as file:
            return [TakeFeatures(self.name, images) for images in read_images(file, BATCH)]

    def count(self) -> int:
        """The number of images of the file."""
        return sum(some.size for some in self._work)

    def work(self) -> list[TakeFeatures]:
        """All images."""
        return self._work

    def published_moments(self) -> Moments | None:
        """The moments of all training images, of which the file holds a choice."""
        with storage.open(self.name) as file:
            arrays = read_moments(file)
        return None if arrays is None else Moments(*(torch.from_numpy(array).double() for array in arrays))
