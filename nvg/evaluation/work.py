"""The pieces of an evaluation's work, and the result of each.

A piece of work is something to draw (DrawSamples, DrawStages) or images to look at (RealImages: for features, for
reconstruction, for structure that is given); an actor, which holds the networks, does it. ReadUnit names images that a
reading task decodes first. Arrays are NumPy's: work and results travel through Ray's object store.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from nvg.config import Config
from nvg.data import ImageSource
from nvg.data.images import to_float
from nvg.data.records import Unit
from nvg.data.stream import read_pieces
from nvg.evaluation.features import FeatureNetwork
from nvg.evaluation.reconstruction import code_counts, mse_by_stages
from nvg.generator import Given, Sampler, nth_seed
from nvg.generator.batches import in_fours

if TYPE_CHECKING:
    from nvg.frozen.lpips import LPIPS

SHOWN = 20  # images of reconstruction.png


@dataclass(frozen=True)
class Networks:
    """The networks that an actor holds."""

    sampler: Sampler
    features: FeatureNetwork
    lpips: LPIPS | None  # where tokenizer_train.lpips_weights names its weights
    encode_batch: int  # images that the tokenizer encodes at once
    dinov2: FeatureNetwork | None = None  # where evaluate.dinov2_weights names its weights


# ---- results ----

FeaturesKey = tuple[str, bool]  # a set of real images, and whether its features are DINOv2's, not the feature network's


@dataclass(frozen=True)
class Samples:
    """Drawn images with their features."""

    images: np.ndarray  # uint8 (n, H, W, C)
    labels: list[int]  # the classes that were asked for
    features: np.ndarray  # float32 (n, D)
    logits: np.ndarray  # float32 (n, classes of the feature network)
    dinov2: np.ndarray | None = None  # DINOv2's features, float32 (n, D)


@dataclass(frozen=True)
class Stages:
    """Drawn images at every stage, for stages.png."""

    previews: np.ndarray  # uint8 (K + 1, n, H, W, C)
    codes: np.ndarray  # int64 (n, L), structure codes
    labels: list[int]


@dataclass(frozen=True)
class Features:
    """Features of real images."""

    reference: FeaturesKey
    features: np.ndarray  # float32 (n, D)
    right: int  # how many of them the network gives their label


@dataclass(frozen=True)
class Reconstructions:
    """Real images, encoded and decoded."""

    images: np.ndarray  # the first of them, at most SHOWN: uint8 (n, H, W, C)
    reconstructions: np.ndarray  # of these
    features: np.ndarray  # of all reconstructions: float32 (n, D)
    errors: np.ndarray  # float64 (n, K + 1), as `mse_by_stages` gives them
    counts: np.ndarray  # int32 (batches, K + 1, V), as `code_counts` gives them
    lpips: np.ndarray | None  # float32 (n,)


@dataclass(frozen=True)
class Structures:
    """Structure of real images, to be given to samples."""

    codes: np.ndarray  # int16 (n, L), structure codes
    labels: list[int]


Result = Samples | Stages | Features | Reconstructions | Structures


def cut_pixels(images: Tensor) -> Tensor:
    """Pixels as they are measured: float images in [-1, 1], (N, C, H, W), clamped -> uint8 (N, H, W, C).

    255 (x + 1) / 2 is cut down to whole numbers, for the published figures are of such pixels: ADM's evaluation, VAR's
    and the released system's all do so. What is shown, served or kept as a preview is rounded instead
    (nvg.generator.batches.to_pixels).
    """
    return (255 * (images.float().clamp(-1, 1) + 1) / 2).to(torch.uint8).permute(0, 2, 3, 1)


# ---- work ----


class Work(Protocol):
    """A piece of work."""

    @property
    def size(self) -> int:
        """Its number of images, for the progress bar."""

    def do(self, networks: Networks) -> Result:
        """The result."""


@dataclass(frozen=True)
class Draw:
    """Samples to draw."""

    labels: list[int]  # their classes
    seed: int  # of the first; each next one has the next
    given: Given | None = None  # structure of each that is not generated

    @property
    def size(self) -> int:
        """The number of samples."""
        return len(self.labels)


class DrawSamples(Draw):
    """Samples to measure."""

    def do(self, networks: Networks) -> Samples:
        """The samples and their features."""
        *_, last = networks.sampler.stages(self.labels, seed=self.seed, given=self.given)
        images = cut_pixels(in_fours(last.tokenizer.decode_canvas, last.canvas)).cpu().numpy()
        features, logits = networks.features(torch.from_numpy(images))
        dinov2 = None if networks.dinov2 is None else networks.dinov2(torch.from_numpy(images))[0].numpy()
        return Samples(images, self.labels, features.numpy(), logits.numpy(), dinov2)


class DrawStages(Draw):
    """Samples to keep at every stage."""

    def do(self, networks: Networks) -> Stages:
        """The previews of all stages, and the structure that they share."""
        steps = list(networks.sampler.stages(self.labels, seed=self.seed, given=self.given))
        codes = steps[-1].sequence_codes.cpu().numpy()
        return Stages(np.stack([step.preview for step in steps]), codes, self.labels)


@dataclass(frozen=True)
class RealImages:
    """Some images of a set."""

    name: str  # of the set: a split, or an .npz file
    images: np.ndarray  # uint8 (n, H, W, C)
    labels: list[int] | None = None  # where the set has any

    @property
    def size(self) -> int:
        """The number of images."""
        return len(self.images)


class TakeFeatures(RealImages):
    """Real images whose features are taken, for a reference."""

    def do(self, networks: Networks) -> Features:
        """The features."""
        features, logits = networks.features(torch.from_numpy(self.images))
        right = 0
        if self.labels is not None:
            right = int((logits.argmax(dim=1) == torch.tensor(self.labels)).sum())
        return Features((self.name, False), features.numpy(), right)


class TakeDinov2Features(RealImages):
    """Real images whose DINOv2 features are taken, for a reference."""

    def do(self, networks: Networks) -> Features:
        """The features."""
        assert networks.dinov2 is not None
        features, _ = networks.dinov2(torch.from_numpy(self.images))
        return Features((self.name, True), features.numpy(), 0)


class Reconstruct(RealImages):
    """Real images to encode and to decode again."""

    def do(self, networks: Networks) -> Reconstructions:
        """The reconstructions, with their errors and the tokens in use."""
        tokenizer, lpips = networks.sampler.tokenizer, networks.lpips
        decoded, errors, distances, counts = [], [], [], []
        for some in np.array_split(self.images, -(-len(self.images) // networks.encode_batch)):
            images = to_float(some).to(networks.sampler.device)
            sequence = tokenizer.encode(images)
            reconstruction = tokenizer.decode(sequence)
            errors.append(mse_by_stages(images, sequence, tokenizer.decode).cpu())
            counts.append(code_counts(sequence, tokenizer.config.codebook_size))
            decoded.append(cut_pixels(reconstruction).cpu())
            if lpips is not None:
                with torch.no_grad():
                    distances.append(lpips(reconstruction, images).flatten().cpu())
        reconstructions = torch.cat(decoded)
        features, _ = networks.features(reconstructions)
        return Reconstructions(
            self.images[:SHOWN],
            reconstructions.numpy()[:SHOWN],
            features.numpy(),
            torch.cat(errors).numpy(),
            torch.stack(counts).to(torch.int32).numpy(),
            torch.cat(distances).numpy() if distances else None,
        )


# A class of RealImages: the set's name, images, labels where it has any.
OnImages = Callable[[str, np.ndarray, list[int] | None], Work]


@dataclass(frozen=True)
class ReadUnit:
    """A unit of a split, to be read. then: the work on its images."""

    split: str
    unit: Unit
    then: OnImages

    def read(self, readers: Mapping[str, ImageSource], config: Config) -> Iterator[Work]:
        """The work on the unit's images, some images at a time. Broken images are left out."""
        for piece in read_pieces(readers[self.split], self.unit, config.data, 0, config.evaluate.seed):
            if piece.ids:
                yield self.then(self.split, piece.images, piece.labels)


# ---- lists of work ----


GivenOf = Callable[[list[int], int], Given]  # the structure given to images of some classes: labels, the first's seed


def sample_work(config: Config, classes: int, given: GivenOf | None = None) -> list[DrawSamples]:
    """Image j has class j mod classes and seed evaluate.seed + j, whichever actor draws it."""
    settings = config.evaluate
    labels = [number % classes for number in range(settings.samples_per_class * classes)]
    work = []
    for first in range(0, len(labels), settings.batch_size):
        some, seed = labels[first : first + settings.batch_size], nth_seed(settings.seed, first)
        work.append(DrawSamples(some, seed, None if given is None else given(some, seed)))
    return work


def stage_work(config: Config, classes: int, count: int, given: GivenOf | None = None) -> DrawStages:
    """One image each of `count` classes, evenly spaced."""
    labels = np.linspace(0, classes - 1, min(count, classes)).round().astype(int).tolist()
    seed = config.evaluate.seed
    return DrawStages(labels, seed, None if given is None else given(labels, seed))
