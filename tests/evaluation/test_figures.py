"""The figures of an evaluation: every interval holds its figure and lies within what the figure can be."""

import math

import numpy as np
import pytest
import torch

from nvg.config import EvaluateConfig
from nvg.evaluation import metrics
from nvg.evaluation.collect import Collector
from nvg.evaluation.figures import bound_figures, reconstruction_figures, sample_figures
from nvg.evaluation.metrics import Figure
from nvg.evaluation.reference import ReferenceMeter
from nvg.evaluation.work import Reconstructions, Samples

IMAGES, CLASSES = 60, 5
LIMITS = {
    "accuracy_on_samples": (0, 1),
    "frechet_distance": (0, math.inf),
    "inception_score": (1, CLASSES),
    "kernel_distance": (0, math.inf),
    "precision": (0, 1),
    "recall": (0, 1),
    "accuracy_on_test": (0, 1),
    "train_to_test_distance": (0, math.inf),
    "reconstruction_frechet_distance": (0, math.inf),
    "reconstruction_mse": (0, 4),
    "reconstruction_psnr": (0, 10 * math.log10(4e10)),
    "reconstruction_lpips": (0, math.inf),
    "codebook_use": (0, 1),
}


def with_outlier(seed):
    """Features (IMAGES, 2) of which one is far away: a distance spreads by more than it measures."""
    rows = 0.1 * torch.randn(IMAGES, 2, generator=torch.Generator().manual_seed(seed))
    rows[0] = 3.0
    return rows


def reference(name, features, right):
    meter = ReferenceMeter(seed=0)
    meter.add(features, right)
    return meter.reference(name, "mark", "net", labelled=True)


@pytest.fixture(scope="module")
def figures(tmp_path_factory):
    """All figures, on data that puts the figure at an end of its limits and spreads beyond."""
    collector = Collector(["a", "b", "c", "d", "e"], tmp_path_factory.mktemp("figures"), references=[], seed=0)
    labels = [number % CLASSES for number in range(IMAGES)]
    logits = np.zeros((IMAGES, CLASSES), np.float32)
    logits[:1, 1] = 50.0  # one image alone tells its class
    images = np.zeros((IMAGES, 8, 8, 1), np.uint8)
    collector.add(Samples(images, labels, (with_outlier(0) + 0.05).numpy(), logits))
    errors = np.zeros((IMAGES, 3))
    errors[0] = 0.5
    counts = np.zeros((4, 3, 8), np.int32)
    for batch in range(4):
        counts[batch, :, 2 * batch : 2 * batch + 2] = 1  # each batch uses entries of its own, all of them together
    lpips = errors[:, 0].astype(np.float32)
    collector.add(Reconstructions(images[:2], images[:2], (with_outlier(1) + 0.05).numpy(), errors, counts, lpips))
    references = {"test": reference("test", with_outlier(2), IMAGES), "train": reference("train", with_outlier(3), 0)}
    settings = EvaluateConfig(bootstrap=50)
    return {
        **sample_figures(settings, collector, references["test"], knows_classes=True),
        **bound_figures(settings, references, "test"),
        **reconstruction_figures(settings, collector, references["test"], "test"),
    }


def test_every_figure_with_an_interval_is_looked_at(figures):
    assert {name for name, figure in figures.items() if isinstance(figure, Figure)} == LIMITS.keys()


@pytest.mark.parametrize("name", LIMITS)
def test_an_interval_holds_its_figure_and_stays_within_its_limits(figures, name):
    least, greatest = LIMITS[name]
    figure = figures[name]
    assert least <= figure.low <= figure.value <= figure.high <= greatest


@pytest.mark.parametrize(
    ("name", "bound"),
    [
        ("frechet_distance", "low"),
        ("inception_score", "low"),
        ("kernel_distance", "low"),
        ("train_to_test_distance", "low"),
        ("reconstruction_frechet_distance", "low"),
        ("reconstruction_mse", "low"),
        ("reconstruction_lpips", "low"),
        ("reconstruction_psnr", "high"),
        ("codebook_use", "high"),
    ],
)
def test_an_interval_that_would_pass_its_limit_ends_there(figures, name, bound):
    assert getattr(figures[name], bound) == pytest.approx(LIMITS[name][bound == "high"], abs=1e-12)


def test_an_interval_within_the_limits_is_the_figure_and_its_spread_to_either_side():
    assert metrics.interval(0.5, 0.2, metrics.SHARE) == Figure(0.5, 0.3, 0.7)


def test_an_unbiased_estimate_below_zero_stays_and_bounds_its_interval():
    assert metrics.interval(-0.1, 0.3, metrics.DISTANCE) == Figure(-0.1, -0.1, pytest.approx(0.2))
    assert metrics.interval(-0.3, 0.1, metrics.DISTANCE) == Figure(-0.3, -0.3, pytest.approx(-0.2))
