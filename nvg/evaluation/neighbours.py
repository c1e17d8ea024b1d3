"""The nearest training images of samples: are samples copies?

Distances are Euclidean between features, and root mean squares between pixels (0 ... 255). A small distance proves
nothing by itself: held-out images have near training images too. The yardstick is the distances of held-out images, and
of their reconstructions, which went through the decoder as samples do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nvg.evaluation.metrics import share
from nvg.pictures import SAMPLE_SIDES, TileRow, compose, tile

SPACES = ("features", "pixels")
YARDSTICKS = ("held_out", "reconstructions")
QUANTILES = (0.05, 0.5, 0.95)
NEAR = 0.05  # the share of the held-out images that are near to a training image, by definition


@dataclass
class Images:
    """Some images in both spaces."""

    pixels: Tensor  # uint8 (N, H, W, C)
    features: Tensor  # (N, D) float

    def vectors(self, space: str) -> Tensor:
        """(N, D), between which distances are Euclidean. space: one of SPACES."""
        if space == "features":
            return self.features
        return self.pixels.flatten(1).float() / self.pixels[0].numel() ** 0.5


class Nearest:
    """The nearest of a stream of images to each of N others, by one space."""

    def __init__(self, queries: Images, space: str, count: int = 1, *, keep: bool = False) -> None:
        """count: neighbours of each. keep: whether their pixels are kept, for a picture."""
        self.space, self.keep = space, keep
        self._queries = queries.vectors(space)
        self._seen = 0
        self._pixels: dict[int, np.ndarray] = {}
        self.distances = torch.full((len(self._queries), count), torch.inf)  # (N, count), the nearest first
        self.numbers = torch.full((len(self._queries), count), -1)  # in the order of the stream

    def add(self, images: Images) -> None:
        """Take M images of the stream in."""
        # Without products of matrices: these would not give 0 for a copy.
        exact = "donot_use_mm_for_euclid_dist"
        new = torch.cdist(self._queries, images.vectors(self.space), compute_mode=exact)  # (N, M)
        numbers = torch.arange(self._seen, self._seen + new.shape[1]).expand_as(new)
        self._seen += new.shape[1]
        nearest = torch.cat((self.distances, new), dim=1).topk(self.distances.shape[1], largest=False)
        self.distances = nearest.values
        self.numbers = torch.cat((self.numbers, numbers), dim=1).gather(1, nearest.indices)
        if self.keep:
            kept = set(self.numbers.flatten().tolist())
            first = self._seen - new.shape[1]
            self._pixels = {number: image for number, image in self._pixels.items() if number in kept}
            self._pixels |= {n: images.pixels[n - first].numpy() for n in kept if n >= first}

    def images(self, query: int) -> list[np.ndarray]:
        """The neighbours of a query, uint8 (H, W, C) each."""
        return [self._pixels[number] for number in self.numbers[query].tolist()]


def summary(distances: Mapping[str, Tensor]) -> dict[str, Any]:
    """What a card says of one space. distances: to the nearest training image, (N,) each, of the `samples` and of the
    YARDSTICKS.

    `nearer` has, by yardstick, the share of the samples that are nearer than 95% of its images are, with its interval:
    0.05 where samples are as near as held-out images, more where they are copies.
    """
    levels = torch.tensor(QUANTILES)
    nearer = {}
    for name in YARDSTICKS:
        near = distances[name].quantile(NEAR)
        # Those at that distance are no nearer, but copies are, even where the yardstick has copies.
        found = (distances["samples"] < near) | (distances["samples"] == 0)
        figure = share(int(found.sum()), len(found))
        nearer[name] = {"share": figure.value, "interval": [figure.low, figure.high]}
    return {
        "quantiles": {
            name: dict(zip(map(str, QUANTILES), values.quantile(levels).tolist(), strict=True))
            for name, values in distances.items()
        },
        "nearer": nearer,
        "copies": int((distances["samples"] == 0).sum()),
    }


def picture(
    samples: Images, nearest: Mapping[str, Nearest], labels: Sequence[int], class_names: Sequence[str], rows: int = 10
) -> Image.Image:
    """The samples that are nearest to a training image, the nearest first, each beside its neighbours in both spaces.

    nearest: by space, with kept pixels. Distances to the nearest stand under the class.
    """
    count = nearest["features"].distances.shape[1]
    order = nearest["features"].distances[:, 0].argsort()[:rows].tolist()
    lines = []
    for query in order:
        images = [samples.pixels[query].numpy()] + [image for space in SPACES for image in nearest[space].images(query)]
        colour = [np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image for image in images]
        near = [float(nearest[space].distances[query, 0]) for space in SPACES]
        note = f"features {near[0]:.3g}, pixels {near[1]:.3g}"
        lines.append(TileRow([tile(image, SAMPLE_SIDES) for image in colour], class_names[labels[query]], note=note))
    headings = [("sample", "")]
    headings += [(space if number == 0 else "", f"nearest {number + 1}") for space in SPACES for number in range(count)]
    return compose(lines, headings)
