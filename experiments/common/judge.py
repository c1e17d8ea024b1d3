"""Pictures of a sampler, measured on the data set's classifier as an evaluation does it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from experiments.common.data import all_images
from nvg.config import Config, SamplerConfig
from nvg.data import open_source
from nvg.evaluation import metrics
from nvg.evaluation.classifier import save_classifier, train_classifier
from nvg.evaluation.data_classifier import classifier_file
from nvg.evaluation.features import FeatureNetwork, NetworkFile
from nvg.evaluation.metrics import Figure
from nvg.training.seeds import seeded

AT_ONCE = 50  # pictures
CLASSIFIER_BATCH = 128
TUNING_SEED = 1_000_000
GRID: Mapping[str, Sequence[float]] = {
    "content_guidance": (1.5, 2.5, 3.5, 5.0, 7.0, 10.0, 14.0),
    "top_p": (0.25, 0.5, 0.75, 1.0),
    "content_temperature": (0.8, 1.0, 1.25),
}


class Draws(Protocol):
    """Something that draws pictures."""

    @property
    def settings(self) -> SamplerConfig:
        """What `generate` draws by, where a call does not say otherwise."""

    def generate(self, classes: list[int], *, seed: int, **settings: Any) -> np.ndarray:
        """One picture per class, the first one with `seed`: uint8 (N, H, W, C)."""


@dataclass(frozen=True)
class Judge:
    """The classifier, and its features of the held-out images."""

    classifier: FeatureNetwork
    real: Tensor
    right: float  # the share of held-out images that the classifier gives their class
    class_names: list[str]
    samples: int = 5000
    tuning_samples: int = 1000

    @staticmethod
    def open(config: Config, **sizes: int) -> Judge:
        """The judge of a data set; its classifier is trained once and kept. sizes: of the two numbers of samples."""
        source = open_source(config.data, "train")
        path = classifier_file(config, source)
        if not Path(path).exists():
            train(config, path)
        classifier = NetworkFile("classifier", path).load()
        images, labels = all_images(config.data, "test")
        features, logits = classifier(images)
        right = float((logits.argmax(dim=1) == labels).float().mean())
        return Judge(classifier, features, right, source.class_names, **sizes)

    @torch.no_grad()
    def measured(self, sampler: Draws, count: int, first: int, **settings: Any) -> tuple[Tensor, Tensor]:
        """Features of pictures, and which are recognised as their class; classes in turn, seeds from `first` on."""
        classes = torch.arange(count) % len(self.class_names)
        found, right = [], []
        for start, some in zip(range(0, count, AT_ONCE), classes.split(AT_ONCE), strict=True):
            pictures = torch.from_numpy(sampler.generate(some.tolist(), seed=first + start, **settings))
            features, logits = self.classifier(pictures)
            found.append(features)
            right.append(logits.argmax(dim=1) == some)
        return torch.cat(found), torch.cat(right)

    def tune(self, sampler: Draws, grid: Mapping[str, Sequence[float]] = GRID) -> dict[str, float]:
        """The settings of the least Fréchet distance: from the sampler's own, one setting after the other, until a
        round changes none."""
        moments, seen = metrics.moments(self.real), dict[tuple[float, ...], float]()

        def distance(settings: dict[str, float]) -> float:
            key = tuple(settings.values())
            if key not in seen:
                features, _ = self.measured(sampler, self.tuning_samples, TUNING_SEED, **settings)
                seen[key] = metrics.frechet_distance(metrics.moments(features), moments)
            return seen[key]

        best = {name: float(getattr(sampler.settings, name)) for name in grid}
        before = None
        while best != before:
            before = dict(best)
            for name, values in grid.items():
                best = min(({**best, name: value} for value in (best[name], *values)), key=distance)
        return best

    def figures(self, sampler: Draws, **settings: float) -> dict[str, Figure]:
        """Fréchet distance, accuracy, precision and recall with their intervals."""
        features, right = self.measured(sampler, self.samples, 0, **settings)
        precision, recall = metrics.precision_and_recall(features, self.real)
        return {
            "Fréchet distance": metrics.frechet(features, metrics.moments(self.real), replicates=50),
            "accuracy": metrics.share(int(right.sum()), self.samples),
            "precision": precision,
            "recall": recall,
        }


def train(config: Config, path: str) -> None:
    """Train the data set's classifier in this process, into a file."""
    settings, (images, labels) = config.evaluate, all_images(config.data, "train")
    size = min(CLASSIFIER_BATCH, max(2, len(labels) // 4))

    def batches(epoch: int) -> Iterator[dict[str, Tensor]]:
        order = torch.randperm(len(labels), generator=seeded(settings.seed, "classifier", epoch))
        return ({"images": images[rows], "labels": labels[rows]} for rows in order.split(size))

    classifier = train_classifier(
        batches,
        images_per_epoch=len(labels),
        num_classes=config.data.num_classes,
        channels=config.data.channels,
        size=settings.classifier_size,
        epochs=settings.classifier_epochs,
        seed=settings.seed,
    )
    save_classifier(classifier, path)


def cell(figure: Figure) -> str:
    """A figure as a table has it."""
    return f"{figure.value:.3f} [{figure.low:.3f}, {figure.high:.3f}]"
