"""Structure that is given to samples and not generated: maps of held-out images, or drawings made of them.

Does the content follow a structure that comes from another class, or that is drawn or damaged? An evaluation with
`evaluate.given` measures it: every sample is given the structure of one held-out image, and the rest is generated for
the class that is asked for. The kinds (nvg/config/given.py):

    own:3       the maps of stages 1 ... 3 of an image of the same class, as the tokenizer encodes it
    other:3     the same of an image of another class
    drawn       stage 1 alone, of a drawing (nvg/sample.py takes them as files): white where an image of the same class
                is brighter than its own mean
    noisy:0.05  all maps of an image of the same class, in which 5% of the positions have changed sides
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from nvg.config import GivenStructure
from nvg.data.images import to_float
from nvg.errors import DataError
from nvg.evaluation.work import Networks, RealImages, Structures
from nvg.generator import Given, nth_seed
from nvg.generator.controls import given_from_drawing
from nvg.granularity import raster_codes

# ---- the structure of real images ----


class TakeStructure(RealImages):
    """Real images whose structure is taken, as the tokenizer encodes them."""

    def do(self, networks: Networks) -> Structures:
        """The codes of all stages."""
        tokenizer, device = networks.sampler.tokenizer, networks.sampler.device
        batches = to_float(self.images).split(networks.encode_batch)
        codes = torch.cat([tokenizer.encode(some.to(device)).codes.cpu() for some in batches])
        return Structures(codes.to(torch.int16).numpy(), list(self.labels or []))


class TakeDrawing(RealImages):
    """Real images of which drawings are made."""

    def do(self, networks: Networks) -> Structures:
        """The codes of stage 1, of the images whose drawing has two sides on the grid."""
        drawings, grid = drawn(to_float(self.images)), networks.sampler.tokenizer.config.grid
        codes, labels = [torch.zeros(0, grid**2, dtype=torch.int64)], []
        for drawing, label in zip(drawings, self.labels or [], strict=True):
            try:
                codes.append(given_from_drawing(drawing[None], grid).codes)
            except ValueError:  # empty or full: an even image, or one with lines too thin for the grid
                continue
            labels.append(label)
        return Structures(torch.cat(codes).to(torch.int16).numpy(), labels)


def drawn(images: Tensor) -> Tensor:
    """A drawing of each image: white where it is brighter than its own mean. (N, C, H, W) -> (N, H, W), 0 or 1."""
    grey = images.mean(dim=1)
    return (grey > grey.mean(dim=(1, 2), keepdim=True)).float()


def work_on(given: GivenStructure) -> type[TakeStructure] | type[TakeDrawing]:
    """The work on held-out images whose results `HeldOutStructures` takes."""
    return TakeDrawing if given.kind == "drawn" else TakeStructure


# ---- what each sample is given ----


class HeldOutStructures:
    """The structures of held-out images, of which each sample is given one."""

    def __init__(
        self, given: GivenStructure, found: Iterable[Structures], class_names: Sequence[str], *, raster: bool
    ) -> None:
        """raster: whether clusters have raster names (tokenizer.child_order). Raises DataError for a class without a
        structure to choose from."""
        self.given, self.raster = given, raster
        results = list(found)
        labels = np.array([label for some in results for label in some.labels], np.int64)
        order = labels.argsort(kind="stable")
        self.codes = np.concatenate([some.codes for some in results])[order]  # (M, L), class by class
        self.ends = np.bincount(labels, minlength=len(class_names)).cumsum().tolist()
        for label, name in enumerate(class_names):
            first, end = self._rows(label)
            if (len(labels) - (end - first) if given.kind == "other" else end - first) == 0:
                what = "of another class" if given.kind == "other" else "of that class"
                fit = " that makes a drawing" if given.kind == "drawn" else ""
                raise DataError(f"class {name!r}: data.test has no image {what}{fit} whose structure can be given")

    def __len__(self) -> int:
        return len(self.codes)

    def _rows(self, label: int) -> tuple[int, int]:
        """The rows of a class: the first one, and the one after the last."""
        return (self.ends[label - 1] if label else 0), self.ends[label]

    def of(self, labels: Sequence[int], seed: int) -> Given:
        """The structure given to samples of some classes: a function of a sample's class and seed. seed: the first
        one's; each next sample has the next."""
        codes = torch.from_numpy(np.stack([self._one(label, nth_seed(seed, j)) for j, label in enumerate(labels)]))
        if self.given.flipped and self.raster:  # the generators know clusters by these names alone
            codes = raster_codes(codes, self.given.stages)
        return Given(codes, self.given.stages, [], torch.zeros(len(codes), dtype=torch.int64))

    def _one(self, label: int, seed: int) -> np.ndarray:
        """The codes of one sample, (L,) int64."""
        rng = np.random.default_rng([seed, label])
        first, end = self._rows(label)
        if self.given.kind == "other":
            row = int(rng.integers(len(self.codes) - (end - first)))
            row += (end - first) * (row >= first)  # the class itself is left out
        else:
            row = int(rng.integers(first, end))
        return flipped(self.codes[row].astype(np.int64), self.given.flipped, rng)


def flipped(codes: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Codes (L,) of which a share of the positions have changed sides, and so their cluster at every stage.

    Pairs of positions, one of either half of stage 1, exchange their codes: clusters keep their sizes. Where the share
    is no whole number of pairs it is so in the mean.
    """
    pairs = share * len(codes) / 2
    count = int(pairs) + int(rng.random() < pairs - int(pairs))
    upper = codes >= len(codes) // 2  # the top bit
    one, other = (rng.permutation(np.flatnonzero(side))[:count] for side in (~upper, upper))
    result = codes.copy()
    result[one], result[other] = codes[other], codes[one]
    return result
