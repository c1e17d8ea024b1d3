"""What an evaluation keeps of its results: features in memory, images in samples.npz and in pictures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nvg.evaluation.npz import ImageWriter
from nvg.evaluation.reconstruction import ReconstructionFigures
from nvg.evaluation.reference import ReferenceMeter
from nvg.evaluation.work import Features, FeaturesKey, Reconstructions, Result, Samples, Stages
from nvg.pictures import MAXIMUM_CLASSES, reconstruction_picture, sample_grid, stages_picture

GRID_COLUMNS = 10  # samples of a class in samples.png


class SampleGrid:
    """The first samples of some classes, evenly spaced, for samples.png."""

    def __init__(self, class_names: Sequence[str]) -> None:
        self.class_names = class_names
        shown = np.linspace(0, len(class_names) - 1, min(MAXIMUM_CLASSES, len(class_names))).round()
        self.images: dict[int, list[np.ndarray]] = {int(label): [] for label in shown}

    def add(self, samples: Samples) -> None:
        """Keep those for which there is room."""
        for image, label in zip(samples.images, samples.labels, strict=True):
            if label in self.images and len(self.images[label]) < GRID_COLUMNS:
                self.images[label].append(image)

    def save(self, path: Path) -> None:
        """Write the picture."""
        images = np.stack([image for some in self.images.values() for image in some])
        labels = [label for label, some in self.images.items() for _ in some]
        sample_grid(images, labels, self.class_names, GRID_COLUMNS).save(path)


class Collector:
    """Takes the results of an evaluation in, and writes its pictures into a folder."""

    def __init__(
        self,
        class_names: Sequence[str],
        folder: Path,
        *,
        references: Iterable[FeaturesKey],
        seed: int,
        writer: ImageWriter | None = None,
    ) -> None:
        """references: the features of real images that are to come. seed: of the choice that is kept of them.
        writer: an open file for the samples."""
        self.class_names, self.folder, self.writer = class_names, folder, writer
        self.grid = SampleGrid(class_names)
        self.labels: list[int] = []
        self.references = {name: ReferenceMeter(seed) for name in references}
        self.reconstruction = ReconstructionFigures()
        self._features: list[Tensor] = []
        self._logits: list[Tensor] = []
        self._dinov2: list[Tensor] = []
        self._reconstructed: list[Tensor] = []

    def add(self, result: Result) -> None:
        """Take one result in."""
        match result:
            case Samples():
                self._add_samples(result)
            case Stages(previews, codes, labels):
                stages_picture(codes, list(previews), labels, self.class_names).save(self.folder / "stages.png")
            case Features(reference, features, right):
                self.references[reference].add(torch.from_numpy(features), right)
            case Reconstructions():
                self._add_reconstructions(result)

    def _add_samples(self, samples: Samples) -> None:
        self.labels += samples.labels
        self._features.append(torch.from_numpy(samples.features))
        self._logits.append(torch.from_numpy(samples.logits))
        if samples.dinov2 is not None:
            self._dinov2.append(torch.from_numpy(samples.dinov2))
        self.grid.add(samples)
        if self.writer is not None:
            self.writer.add(samples.images)

    def _add_reconstructions(self, result: Reconstructions) -> None:
        if self.reconstruction.images == 0:
            picture = reconstruction_picture(result.images, result.reconstructions)
            picture.save(self.folder / "reconstruction.png")
        self._reconstructed.append(torch.from_numpy(result.features))
        lpips = None if result.lpips is None else torch.from_numpy(result.lpips)
        self.reconstruction.add(torch.from_numpy(result.errors), torch.from_numpy(result.counts), lpips)

    @property
    def features(self) -> Tensor:
        """Features of the samples: (N, D)."""
        return torch.cat(self._features)

    @property
    def logits(self) -> Tensor:
        """The feature network's logits of the samples: (N, classes)."""
        return torch.cat(self._logits)

    @property
    def dinov2_features(self) -> Tensor:
        """DINOv2's features of the samples: (N, D)."""
        return torch.cat(self._dinov2)

    @property
    def reconstructed_features(self) -> Tensor:
        """Features of the reconstructions: (N, D)."""
        return torch.cat(self._reconstructed)
