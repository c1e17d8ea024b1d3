"""The figures of an evaluation, by name, from what its actors have measured."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from nvg.config import EvaluateConfig
from nvg.evaluation import metrics
from nvg.evaluation.collect import Collector
from nvg.evaluation.metrics import Figure
from nvg.evaluation.reference import Reference

Figures = dict[str, Figure | list[float] | float | str]


def sample_figures(
    settings: EvaluateConfig, collector: Collector, reference: Reference, *, knows_classes: bool
) -> Figures:
    """How close the samples are to real images. knows_classes: whether the logits are of the data set's classes."""
    features, logits = collector.features, collector.logits
    spread = {"replicates": settings.bootstrap, "seed": settings.seed}
    figures: Figures = {"samples": len(features)}
    if knows_classes:
        right = int((logits.argmax(dim=1) == torch.tensor(collector.labels)).sum())
        figures["accuracy_on_samples"] = metrics.share(right, len(features))
    figures["frechet_distance"] = metrics.frechet(features, reference.moments, **spread)
    figures["inception_score"] = metrics.inception_score(logits, **spread)
    fewest = min(len(features), len(reference.features))
    if fewest >= 2 * metrics.GROUPS:
        figures["kernel_distance"] = metrics.kernel_distance(features, reference.features, seed=settings.seed)
    if fewest > metrics.NEIGHBOURS:
        figures["precision"], figures["recall"] = metrics.precision_and_recall(features, reference.features)
    return figures


def dinov2_figures(settings: EvaluateConfig, collector: Collector, reference: Reference) -> Figures:
    """How close the samples are to real images on DINOv2's features. reference: by these."""
    distance = metrics.frechet(
        collector.dinov2_features, reference.moments, replicates=settings.bootstrap, seed=settings.seed
    )
    return {"frechet_distance_dinov2": distance}


def bound_figures(settings: EvaluateConfig, references: Mapping[str, Reference], held_out: str) -> Figures:
    """What perfect samples would have: the classifier's accuracy on held-out images (a split's name), and the distance
    of the training images to the test images."""
    figures: Figures = {}
    if held_out in references and (right := references[held_out].right) is not None:
        figures[f"accuracy_on_{held_out}"] = metrics.share(right, references[held_out].images)
    if "train" in references and "test" in references:
        figures["train_to_test_distance"] = metrics.frechet(
            references["train"].features,
            references["test"].moments,
            replicates=settings.bootstrap,
            seed=settings.seed,
        )
    return figures


def reconstruction_figures(
    settings: EvaluateConfig, collector: Collector, reference: Reference, held_out: str
) -> Figures:
    """How well the tokenizer gives held-out images back. reference: of these images."""
    spread = {"replicates": settings.bootstrap, "seed": settings.seed}
    return {
        "reconstruction_images": f"{collector.reconstruction.images} {held_out} images",
        "reconstruction_frechet_distance": metrics.frechet(
            collector.reconstructed_features, reference.moments, **spread
        ),
        **collector.reconstruction.figures(**spread),
    }
