"""Pictures of a content generator, measured on the data set's classifier as an evaluation does it."""

from __future__ import annotations

import itertools
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
GUIDANCE = (1.5, 2.5, 3.5)
TOP_P = (0.5, 0.75, 1.0)


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
        """The content guidance and top-p of the least Fréchet distance."""
        moments, results = metrics.moments(self.real), {}
        for guidance, top_p in itertools.product(GUIDANCE, TOP_P):
            some = {"content_guidance": guidance, "top_p": top_p}
            features, _ = self.measured(sampler, TUNING_SAMPLES, TUNING_SEED, **some)
            results[guidance, top_p] = metrics.frechet_distance(metrics.moments(features), moments)
        guidance, top_p = min(results, key=lambda key: results[key])
        return {"content_guidance": guidance, "top_p": top_p}

    def figures(self, sampler: Sampler, **settings: float) -> list[str]:
        """Fréchet distance, accuracy and recall with their intervals, as cells."""
        features, right = self.measured(sampler, SAMPLES, 0, **settings)
        distance = metrics.frechet(features, metrics.moments(self.real), replicates=50)
        _, recall = metrics.precision_and_recall(features, self.real)
        accuracy = metrics.share(int(right.sum()), SAMPLES)
        return [f"{one.value:.3f} [{one.low:.3f}, {one.high:.3f}]" for one in (distance, accuracy, recall)]
