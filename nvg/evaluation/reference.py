"""Features of real images, which samples are compared with; they are kept in a file once they are computed."""

from __future__ import annotations

import json
from dataclasses import dataclass

import torch
from torch import Tensor

from nvg import storage
from nvg.artifacts.files import write_safetensors
from nvg.errors import DataError
from nvg.evaluation.metrics import Moments, MomentsMeter

MANIFOLD_IMAGES = 10_000  # images whose features are kept, for precision, recall and the kernel distance
FORMAT = "1"


@dataclass
class Reference:
    """Features of a set of real images by one network."""

    name: str  # "10000 test images"
    fingerprint: str  # of the images
    network: str
    images: int  # behind the moments
    moments: Moments
    features: Tensor  # (M, D), M = min(images, MANIFOLD_IMAGES): a random choice
    right: int | None  # how many the network gives their label, where it knows the classes

    def save(self, path: str) -> None:
        """Write a .safetensors file, path or URL."""
        record = {
            "name": self.name,
            "fingerprint": self.fingerprint,
            "network": self.network,
            "images": self.images,
            "right": self.right,
        }
        tensors = {
            "mean": self.moments.mean,
            "covariance": self.moments.covariance,
            "features": self.features.contiguous(),
        }
        metadata = {"format": FORMAT, "reference": json.dumps(record)}
        with storage.file_writer(path) as file:
            write_safetensors(file, tensors, metadata)


def load_reference(path: str) -> Reference:
    """The reference that `Reference.save` wrote. Raises DataError when the file is damaged or something else."""
    try:
        metadata, tensors = storage.read_safetensors(path)
    except ValueError as error:
        raise DataError(str(error)) from None
    if metadata.get("format") != FORMAT or "reference" not in metadata:
        raise DataError(f"{path} is no reference of format {FORMAT}: remove it and evaluate again")
    record = storage.parse_record(_Record, metadata["reference"], path, DataError)
    try:
        mean, covariance, features = (tensors[name] for name in ("mean", "covariance", "features"))
        fits = mean.ndim == 1 and covariance.shape == (*mean.shape, *mean.shape) and features.shape[1:] == mean.shape
    except KeyError as error:
        raise DataError(f"{path} has no tensor {error}: remove it and evaluate again") from None
    if not fits or not all(value.isfinite().all() for value in (mean, covariance, features)):
        raise DataError(f"{path} is damaged: moments and features do not fit: remove it and evaluate again")
    return Reference(**vars(record), moments=Moments(mean, covariance), features=features)


@dataclass
class _Record:
    """The metadata of the file."""

    name: str
    fingerprint: str
    network: str
    images: int
    right: int | None


class ReferenceMeter:
    """Builds a Reference from batches of features. Which rows are kept follows from the seed and the order."""

    def __init__(self, seed: int) -> None:
        self.meter = MomentsMeter()
        self.kept: list[Tensor] = []
        self.keys: list[Tensor] = []
        self.right = 0
        self.rng = torch.Generator().manual_seed(seed)

    def add(self, features: Tensor, right: int) -> None:
        """features: (n, D); right: how many of them the network gives their label."""
        self.meter.add(features)
        self.right += right
        self.kept.append(features)
        self.keys.append(torch.rand(len(features), generator=self.rng))
        if sum(map(len, self.kept)) > 2 * MANIFOLD_IMAGES:
            self._thin()

    def _thin(self) -> None:
        """Keep the rows with the least random keys: a uniform choice of all that came."""
        features, keys = torch.cat(self.kept), torch.cat(self.keys)
        rows = keys.argsort()[:MANIFOLD_IMAGES].sort().values
        self.kept, self.keys = [features[rows]], [keys[rows]]

    def reference(
        self, what: str, fingerprint: str, network: str, *, labelled: bool, all_images: Moments | None = None
    ) -> Reference:
        """The result. all_images: moments to take in place of those of the images that came (ADM's batches).

        Raises DataError when fewer than two images came: they have no covariance.
        """
        if self.meter.count < 2:
            raise DataError(f"{self.meter.count} readable {what} images: at least two are needed to measure against")
        self._thin()
        return Reference(
            f"{self.meter.count} {what} images",
            fingerprint,
            network,
            self.meter.count,
            all_images or self.meter.moments(),
            self.kept[0],
            self.right if labelled else None,
        )
