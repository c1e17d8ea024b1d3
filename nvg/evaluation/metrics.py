"""Distances between a set of images and a reference, on features of a network. Every figure has a 95% interval.

Features are (N, D), one row an image, of both sets from the same network: figures of different networks, numbers of
images or references cannot be compared, and nvg/evaluation/compare.py refuses to.

Intervals: Fréchet distance and Inception Score by the normal bootstrap over the samples (the reference stands fixed),
kernel distance by disjoint groups of samples, shares (accuracy, precision, recall) after Wilson. A bootstrap's own
values lie above the figure, since both scores depend on the number of different images: only their spread is used.
An interval of figure plus and minus spread is cut to the limits of the figure, e.g. [0, 1] of a share.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

NORMAL = 1.96  # of a 95% interval
NEIGHBOURS = 3  # k of the manifold's radii, as published
SPLIT = 5000  # images per split of the Inception Score, as in the ADM suite
GROUPS = 10  # disjoint groups of the kernel distance
KERNEL_IMAGES = 1000  # images of a group, at most
ROWS = 1024  # of a block of pairwise distances


@dataclass(frozen=True)
class Figure:
    """A figure and its 95% interval."""

    value: float
    low: float
    high: float


Limits = tuple[float, float]  # the least and the greatest value that a figure can have
DISTANCE: Limits = (0.0, math.inf)
SHARE: Limits = (0.0, 1.0)


def interval(value: float, half: float, limits: Limits) -> Figure:
    """A value with the interval of `half` to either side, as far as it lies within the limits.

    A value that itself lies beyond them, as an unbiased estimate may, bounds the interval.
    """
    least, greatest = limits
    return Figure(value, min(value, max(value - half, least)), max(value, min(value + half, greatest)))


# ---- Fréchet distance ----


@dataclass(frozen=True)
class Moments:
    """Mean (D,) and covariance (D, D) of features, float64."""

    mean: Tensor
    covariance: Tensor

    @cached_property
    def root(self) -> Tensor:
        """The symmetric square root of the covariance."""
        values, vectors = torch.linalg.eigh(self.covariance)
        return (vectors * values.clamp_min(0.0).sqrt()) @ vectors.T


class MomentsMeter:
    """Moments of features that come in batches and are not kept."""

    def __init__(self) -> None:
        self.count = 0

    def add(self, features: Tensor) -> None:
        """features: (n, D)."""
        features = features.double()
        if self.count == 0:
            self.shift = features.mean(dim=0)  # sums of squares about the mean lose no digits
            self.sum = torch.zeros_like(self.shift)
            self.products = features.new_zeros(features.shape[1], features.shape[1])
        centred = features - self.shift
        self.sum += centred.sum(dim=0)
        self.products += centred.T @ centred
        self.count += len(features)

    def moments(self) -> Moments:
        """Raises ValueError for less than two rows."""
        if self.count < 2:
            raise ValueError(f"{self.count} images have no covariance: at least 2 are needed")
        mean = self.sum / self.count
        covariance = (self.products - self.count * torch.outer(mean, mean)) / (self.count - 1)
        return Moments(self.shift + mean, covariance)


def moments(features: Tensor) -> Moments:
    """The moments of features (N, D). Raises ValueError for less than two rows."""
    meter = MomentsMeter()
    meter.add(features)
    return meter.moments()


def frechet_distance(one: Moments, other: Moments) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^1/2)  (Heusel et al., "GANs trained by a two time-scale update rule").

    The trace of the root is taken over the eigenvalues of the symmetric C2^1/2 C1 C2^1/2, which has the same ones.
    """
    product = other.root @ one.covariance @ other.root
    roots = torch.linalg.eigvalsh((product + product.T) / 2).clamp_min(0.0).sqrt()
    mean = (one.mean - other.mean).square().sum()
    return float(mean + one.covariance.trace() + other.covariance.trace() - 2 * roots.sum())


def frechet(samples: Tensor, reference: Moments, *, replicates: int, seed: int = 0) -> Figure:
    """The Fréchet distance of samples (N, D) to a reference."""

    def distance(rows: Tensor) -> float:
        return frechet_distance(moments(samples[rows]), reference)

    return bootstrap(distance, len(samples), replicates, seed, limits=DISTANCE)


# ---- Inception Score ----


def inception_score(logits: Tensor, *, replicates: int, seed: int = 0) -> Figure:
    """exp(mean KL(p(y|x) | p(y))), a mean over splits of SPLIT images: logits (N, classes)."""
    logs = logits.double().log_softmax(dim=1)

    def score(rows: Tensor) -> float:
        splits = logs[rows].split(SPLIT)
        if len(splits) > 1 and len(splits[-1]) < SPLIT:  # a short one has a lower score for its size alone
            splits = splits[:-1]
        return sum(_score(split) for split in splits) / len(splits)

    return bootstrap(score, len(logits), replicates, seed, limits=(1.0, logits.shape[1]))


def _score(logs: Tensor) -> float:
    probabilities = logs.exp()
    marginal = probabilities.mean(dim=0).clamp_min(1e-300).log()
    return math.exp(float((probabilities * (logs - marginal)).sum(dim=1).mean()))


# ---- kernel distance ----


def kernel_distance(samples: Tensor, reference: Tensor, *, seed: int = 0) -> Figure:
    """The unbiased squared MMD under (x.y / D + 1)^3  (Binkowski et al., "Demystifying MMD GANs"), a mean over GROUPS
    disjoint groups of samples, each against other reference images: (N, D), (M, D), both at least 2 * GROUPS.

    An unbiased estimate of 0 is negative as often as not.
    """
    from torchmetrics.image.kid import poly_mmd

    rng = torch.Generator().manual_seed(seed)
    size = min(len(samples) // GROUPS, len(reference) // GROUPS, KERNEL_IMAGES)
    if size < 2:
        least = 2 * GROUPS
        raise ValueError(f"{len(samples)} samples, {len(reference)} reference images: at least {least} are needed")
    mine = torch.randperm(len(samples), generator=rng)[: GROUPS * size].view(GROUPS, size)
    theirs = torch.randperm(len(reference), generator=rng)[: GROUPS * size].view(GROUPS, size)
    values = torch.stack(
        [
            poly_mmd(reference[b].double(), samples[a].double(), degree=3, gamma=None, coef=1.0)
            for a, b in zip(mine, theirs, strict=True)
        ]
    )
    half = NORMAL * float(values.std()) / math.sqrt(GROUPS)
    return interval(float(values.mean()), half, DISTANCE)


# ---- improved precision and recall ----


def precision_and_recall(samples: Tensor, reference: Tensor) -> tuple[Figure, Figure]:
    """The share of samples (N, D) within the reference's manifold, and of the reference (M, D) within the samples'.

    A manifold is the union of balls about its points, each as far as its NEIGHBOURS-th nearest neighbour
    (Kynkäänniemi et al., "Improved precision and recall metric"). The intervals take the two manifolds as given.
    Raises ValueError for sets of not more than NEIGHBOURS images.
    """
    for what, features in (("samples", samples), ("reference images", reference)):
        if len(features) <= NEIGHBOURS:
            raise ValueError(f"{len(features)} {what}: more than {NEIGHBOURS} are needed")
    inside_reference = _inside(samples, reference, _radii(reference))
    inside_samples = _inside(reference, samples, _radii(samples))
    return share(int(inside_reference.sum()), len(samples)), share(int(inside_samples.sum()), len(reference))


def _radii(points: Tensor) -> Tensor:
    """The squared distance of each point to its NEIGHBOURS-th neighbour, itself not counted: (N,)."""
    blocks = [_squared_distances(rows, points).kthvalue(NEIGHBOURS + 1, dim=1).values for rows in points.split(ROWS)]
    return torch.cat(blocks)


def _inside(queries: Tensor, points: Tensor, radii: Tensor) -> Tensor:
    """Which queries lie in any of the balls: (n,) bool."""
    return torch.cat([(_squared_distances(rows, points) <= radii).any(dim=1) for rows in queries.split(ROWS)])


def _squared_distances(one: Tensor, other: Tensor) -> Tensor:
    """(n, D), (m, D) -> (n, m) float64, exactly 0 for equal rows: a ball about a doubled point has the radius 0."""
    one, other = one.double(), other.double()
    scale = one.square().sum(dim=1)[:, None] + other.square().sum(dim=1)
    squared = scale - 2 * one @ other.T
    return torch.where(squared > 1e-12 * scale, squared, 0.0)


# ---- shares, means and the bootstrap ----


def share(hits: int, count: int) -> Figure:
    """A share and its Wilson interval. Raises ValueError for a count of 0."""
    if count == 0:
        raise ValueError("a share of no images is not defined")
    p, z = hits / count, NORMAL
    middle = (p + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(p * (1 - p) / count + z * z / (4 * count * count))
    # At a share of 0 or 1 rounding puts the bounds a hair to either side.
    return Figure(p, min(max(middle - half, 0.0), p), max(min(middle + half, 1.0), p))


def mean(values: Tensor, *, limits: Limits) -> Figure:
    """The mean of values (N,), one per image, and its normal interval. Raises ValueError where there are none."""
    if len(values) == 0:
        raise ValueError("a mean of no images is not defined")
    value = float(values.double().mean())
    half = NORMAL * float(values.double().std()) / math.sqrt(len(values)) if len(values) > 1 else math.inf
    return interval(value, half, limits)


def bootstrap(
    statistic: Callable[[Tensor], float], count: int, replicates: int, seed: int, *, limits: Limits
) -> Figure:
    """A statistic of rows (count,) int64, with the spread that resampled rows give it (Efron's normal interval)."""
    value = statistic(torch.arange(count))
    rng = torch.Generator().manual_seed(seed)
    drawn = [statistic(torch.randint(count, (count,), generator=rng)) for _ in range(replicates)]
    return interval(value, NORMAL * float(torch.tensor(drawn, dtype=torch.float64).std()), limits)
