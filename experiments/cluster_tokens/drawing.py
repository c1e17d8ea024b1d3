"""Pictures of a content generator, measured on the data set's classifier as an evaluation does it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.cluster_tokens.data import views
from nvg.config import Config
from nvg.data import open_source
from nvg.evaluation import metrics
from nvg.evaluation.data_classifier import classifier_file, train_data_classifier
from nvg.evaluation.features import FeatureNetwork, NetworkFile
from nvg.generator import Sampler

SAMPLES, TUNING_SAMPLES, AT_ONCE = 5000, 1000, 50
TUNING_SEED = 1_000_000
GRID = {
    "content_guidance": (1.5, 2.5, 3.5, 5.0, 7.0, 10.0, 14.0),
    "top_p": (0.25, 0.5, 0.75, 1.0),
    "content_temperature": (0.8, 1.0, 1.25),
}


@dataclass(frozen=True)
class Judge:
    """The classifier, and its features of the held-out images."""

    classifier: FeatureNetwork
    real: Tensor
    class_names: list[str]

    @staticmethod
    def open(config: Config) -> Judge:
        """The judge of a data set; its classifier is trained once and kept."""
        source = open_source(config.data, "train")
        path = classifier_file(config, source)
        if not Path(path).exists():
            train_data_classifier(config, path)
        classifier = NetworkFile("classifier", path).load()
        features = [classifier(images)[0] for images, _ in views(config.data, "test")]
        return Judge(classifier, torch.cat(features), source.class_names)

    @torch.no_grad()
    def measured(self, sampler: Sampler, count: int, first: int, **settings: Any) -> tuple[Tensor, Tensor]:
        """Features of pictures, and which are recognised as their class; classes in turn, seeds from `first` on."""
        classes = torch.arange(count) % len(self.class_names)
        found, right = [], []
        for start, some in zip(range(0, count, AT_ONCE), classes.split(AT_ONCE), strict=True):
            pictures = torch.from_numpy(sampler.generate(some.tolist(), seed=first + start, **settings))
            features, logits = self.classifier(pictures)
            found.append(features)
            right.append(logits.argmax(dim=1) == some)
        return torch.cat(found), torch.cat(right)

    def tune(self, sampler: Sampler) -> dict[str, float]:
        """The settings of the least Fréchet distance: from the sampler's own, one setting after the other, until a
        round changes none."""
        moments, seen = metrics.moments(self.real), dict[tuple[float, ...], float]()

        def distance(settings: dict[str, float]) -> float:
            key = tuple(settings.values())
            if key not in seen:
                features, _ = self.measured(sampler, TUNING_SAMPLES, TUNING_SEED, **settings)
                seen[key] = metrics.frechet_distance(metrics.moments(features), moments)
            return seen[key]

        best = {name: float(getattr(sampler.settings, name)) for name in GRID}
        before = None
        while best != before:
            before = dict(best)
            for name, values in GRID.items():
                best = min(({**best, name: value} for value in (best[name], *values)), key=distance)
        return best

    def figures(self, sampler: Sampler, **settings: float) -> list[str]:
        """Fréchet distance, accuracy and recall with their intervals, as cells."""
        features, right = self.measured(sampler, SAMPLES, 0, **settings)
        distance = metrics.frechet(features, metrics.moments(self.real), replicates=50)
        _, recall = metrics.precision_and_recall(features, self.real)
        accuracy = metrics.share(int(right.sum()), SAMPLES)
        return [f"{one.value:.3f} [{one.low:.3f}, {one.high:.3f}]" for one in (distance, accuracy, recall)]
