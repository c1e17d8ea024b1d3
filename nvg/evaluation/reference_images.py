"""The real images that samples are compared with: a split of the data set, or an .npz file of the ADM suite."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from nvg import config as configuration
from nvg import storage
from nvg.config import Config, DataConfig
from nvg.console import say
from nvg.data import ImageSource, open_source
from nvg.errors import DataError
from nvg.evaluation.features import BATCH, INCEPTION_WIDTH, NetworkFile
from nvg.evaluation.metrics import Moments
from nvg.evaluation.npz import read_header, read_images
from nvg.evaluation.reference import Reference, ReferenceMeter, load_reference
from nvg.evaluation.work import FeaturesKey, OnImages, ReadUnit, TakeDinov2Features, TakeFeatures, Work


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
    def work(self, then: OnImages) -> list[ReadUnit] | list[Work]:
        """The work on all images, some at a time. then: TakeFeatures, or another one on real images."""

    def published_moments(self) -> Moments | None:
        """Moments that are published with the images and stand for more of them."""
        return None

    def without_images(self, network: str) -> Reference | None:
        """The reference where there are no images, but moments alone. network: the name of that which made them."""
        return None

    def features_file(self, output: str, network: str) -> str:
        """The file of the features by a network, path or URL."""
        key = configuration.digest("reference", self.fingerprint, self.preparation, network)
        return storage.join(output, f"reference-{key}.safetensors")


class SplitImages(ReferenceImages):
    """A split of the data set, or the first images of it."""

    labelled = True

    def __init__(self, config: Config, name: str, most: int | None = None, training: ImageSource | None = None) -> None:
        """name: train or test. most: how many images at most. training: the training images, where they are open."""
        data = config.data
        self.name = self.description = name
        self.source = open_source(data, name, training)
        self.fingerprint = self.source.fingerprint()
        if data.resize == "lanczos8":  # the centre is another picture: other features, and another protocol
            self.fingerprint += f" {data.resize} {data.crop_scale:g}"
        pixels = [data.image_size, data.channels, data.limit if name == "train" else None]
        self.preparation = [*pixels, data.source, data.image_column, data.label_column, self.source.class_names]
        if most is not None:
            self.source.limit(most)

    def count(self) -> int:
        """The number of images, as far as it is known before they are read."""
        return self.source.count()

    def work(self, then: OnImages) -> list[ReadUnit]:
        """The units, to be read for it."""
        return [ReadUnit(self.name, unit, then) for unit in self.source.units]


class NpzImages(ReferenceImages):
    """An .npz file as the ADM evaluation suite publishes it (nvg/evaluation/npz.py), path or URL."""

    labelled = False
    description = "reference"

    def __init__(self, name: str, data: DataConfig, feature_width: int) -> None:
        """data: how large the images must be. feature_width: D of the network. Raises DataError for a file that does
        not fit them, before anything is computed."""
        self.name, self.where, self.channels = name, f"evaluate.reference={name}", data.channels
        self.preparation = data.channels
        with self._named(), storage.open(name) as file:
            self.header = read_header(file)
        self.fingerprint = self.header.fingerprint
        shape, size = self.header.shape, data.image_size
        if shape is not None and shape[1:3] != (size, size):
            raise DataError(
                f"{self.where} holds images of {shape[2]} x {shape[1]} pixels, but data.image_size={size}: give a "
                "reference of that size"
            )
        width = None if self.header.moments is None else len(self.header.moments[0])
        if width not in (None, feature_width):
            raise DataError(
                f"{self.where} has moments of {width} features, and the feature network has {feature_width}: they are "
                f"of another network; {INCEPTION_WIDTH} features are Inception's: set evaluate.inception_weights"
            )

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Name the file in errors of its contents."""
        try:
            yield
        except DataError as error:
            raise DataError(f"{self.where}: {error}") from None

    @cached_property
    def _images(self) -> list[np.ndarray]:
        """The images are read here: a zip member has no way to its middle."""
        if self.header.shape is None:
            return []
        with self._named(), storage.open(self.name) as file:
            return [self._of_channels(images) for images in read_images(file, BATCH)]

    def _of_channels(self, images: np.ndarray) -> np.ndarray:
        """uint8 (n, H, W, 3) -> (n, H, W, C): the suite's files hold grey images as three equal channels."""
        if self.channels == 3:
            return images
        if (images != images[..., :1]).any():
            raise DataError("it holds images in colour, but data.channels=1: give a reference of grey images")
        return images[..., :1]

    def count(self) -> int:
        """The number of images of the file."""
        return sum(map(len, self._images))

    def work(self, then: OnImages) -> list[Work]:
        """All images. They have no labels."""
        return [then(self.name, images, None) for images in self._images]

    def published_moments(self) -> Moments | None:
        """The moments of all training images, of which the file holds a choice."""
        arrays = self.header.moments
        return None if arrays is None else Moments(*(torch.from_numpy(array).double() for array in arrays))

    def without_images(self, network: str) -> Reference | None:
        """The moments of a file that has nothing else."""
        moments = self.published_moments()
        if self.header.shape is not None or moments is None:
            return None
        name = f"mu and sigma of {self.name.rpartition('/')[2]}"
        return Reference(name, self.fingerprint, network, 0, moments, torch.zeros(0, len(moments.mean)), None)


@dataclass(frozen=True)
class RealFeatures:
    """Features of a set of real images by a network, which are kept in a file once they are computed."""

    images: ReferenceImages
    network: NetworkFile

    @property
    def key(self) -> FeaturesKey:
        """The name under which an evaluation has them."""
        return self.images.name, self.network.kind == "dinov2"

    @property
    def take(self) -> type[TakeFeatures] | type[TakeDinov2Features]:
        """The work that computes them."""
        return TakeDinov2Features if self.network.kind == "dinov2" else TakeFeatures

    def kept(self, output: str) -> Reference | None:
        """The features of the output folder's file, or what a reference without images has; None where neither is."""
        if (moments := self.images.without_images(self.network.name)) is not None:
            say(f"{self.images.name} holds mu and sigma alone: no precision, recall and kernel distance")
            return moments
        file = self.images.features_file(output, self.network.name)
        return load_reference(file) if storage.exists(file) else None

    def keep(self, meter: ReferenceMeter, output: str) -> Reference:
        """The features that a meter has taken in, which go into the output folder's file."""
        reference = meter.reference(
            self.images.description,
            self.images.fingerprint,
            self.network.name,
            labelled=self.images.labelled and self.network.knows_classes,
            # Published ones are those of Inception.
            all_images=None if self.network.kind == "dinov2" else self.images.published_moments(),
        )
        reference.save(self.images.features_file(output, self.network.name))
        return reference
