"""Every metric against an independent computation on known Gaussians, and its interval against repeated draws."""

import math

import numpy as np
import pytest
import torch

from nvg.evaluation import metrics
from nvg.evaluation.metrics import Moments


def gaussian(count, mean, root, seed):
    """Rows of N(mean, root root^T)."""
    noise = torch.randn(count, len(mean), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return noise @ torch.as_tensor(root, dtype=torch.float64).T + torch.as_tensor(mean, dtype=torch.float64)


# ---- Fréchet distance ----


def test_frechet_distance_of_axis_aligned_gaussians_is_the_closed_form():
    a = Moments(torch.tensor([1.0, 2.0]).double(), torch.diag(torch.tensor([4.0, 9.0]).double()))
    b = Moments(torch.tensor([0.0, 4.0]).double(), torch.diag(torch.tensor([1.0, 16.0]).double()))
    # |m|^2 = 1 + 4; per axis (s1 - s2)^2 = (2 - 1)^2 + (3 - 4)^2
    assert metrics.frechet_distance(a, b) == pytest.approx(7.0, abs=1e-12)
    assert metrics.frechet_distance(b, a) == pytest.approx(7.0, abs=1e-12)
    assert metrics.frechet_distance(a, a) == pytest.approx(0.0, abs=1e-12)


def test_frechet_distance_agrees_with_torchmetrics_on_correlated_features():
    from torchmetrics.image.fid import FrechetInceptionDistance

    class Same(torch.nn.Module):
        num_features = 5

        def forward(self, features):
            return features

    generator = np.random.default_rng(0)
    one = gaussian(800, np.zeros(5), generator.normal(size=(5, 5)), 1)
    other = gaussian(500, np.ones(5), generator.normal(size=(5, 5)), 2)
    theirs = FrechetInceptionDistance(feature=Same(), normalize=False)
    theirs.set_dtype(torch.float64)
    theirs.update(one, real=True)
    theirs.update(other, real=False)
    ours = metrics.frechet_distance(metrics.moments(other), metrics.moments(one))
    assert ours == pytest.approx(float(theirs.compute()), rel=1e-6)


def test_frechet_distance_stands_a_covariance_without_full_rank():
    flat = torch.cat((gaussian(50, [0.0, 0.0], np.eye(2), 0), torch.zeros(50, 3).double()), dim=1)
    assert metrics.frechet_distance(metrics.moments(flat), metrics.moments(flat)) == pytest.approx(0.0, abs=1e-9)
    shifted = flat + torch.tensor([0.0, 0.0, 2.0, 0.0, 0.0])
    assert metrics.frechet_distance(metrics.moments(flat), metrics.moments(shifted)) == pytest.approx(4.0, abs=1e-9)


def test_moments_in_batches_are_those_of_all_rows_far_from_zero():
    rows = gaussian(301, [1e6, -1e6, 0.0], np.diag([1.0, 2.0, 3.0]), 3)
    meter = metrics.MomentsMeter()
    for some in rows.split(37):
        meter.add(some)
    found = meter.moments()
    assert torch.allclose(found.mean, rows.mean(dim=0), rtol=1e-14, atol=1e-9)
    assert np.allclose(found.covariance.numpy(), np.cov(rows.numpy(), rowvar=False), rtol=1e-8)
    with pytest.raises(ValueError, match="1 images have no covariance"):
        metrics.moments(rows[:1])


def test_the_bootstrap_interval_is_as_wide_as_repeated_draws_say():
    reference = Moments(torch.zeros(4).double(), torch.eye(4).double())
    mean = [0.5, 0.0, 0.0, 0.0]
    draws = [
        metrics.frechet_distance(metrics.moments(gaussian(1500, mean, np.eye(4), seed)), reference)
        for seed in range(200)
    ]
    figure = metrics.frechet(gaussian(1500, mean, np.eye(4), 1000), reference, replicates=200)
    half = (figure.high - figure.low) / 2
    assert half == pytest.approx(1.96 * np.std(draws), rel=0.3)
    assert figure.low < figure.value < figure.high
    again = metrics.frechet(gaussian(1500, mean, np.eye(4), 1000), reference, replicates=200)
    assert again == figure


# ---- Inception Score ----


def test_inception_score_of_sure_and_even_predictions_is_the_number_of_classes():
    logits = 100.0 * torch.eye(7).repeat(100, 1)
    assert metrics.inception_score(logits, replicates=2).value == pytest.approx(7.0, rel=1e-6)
    assert metrics.inception_score(torch.zeros(50, 7), replicates=2).value == pytest.approx(1.0, rel=1e-9)


def test_inception_score_agrees_with_a_loop_over_parts():
    logits = torch.randn(2 * metrics.SPLIT + 100, 3, generator=torch.Generator().manual_seed(0))
    p = np.exp(logits.double().numpy())
    p /= p.sum(axis=1, keepdims=True)
    scores = []
    for part in (p[: metrics.SPLIT], p[metrics.SPLIT : 2 * metrics.SPLIT]):  # the short rest is left out
        marginal = part.mean(axis=0)
        scores.append(math.exp(np.mean([np.sum(row * np.log(row / marginal)) for row in part])))
    assert metrics.inception_score(logits, replicates=2).value == pytest.approx(np.mean(scores), rel=1e-9)


# ---- kernel distance ----


def test_kernel_distance_is_zero_in_the_mean_for_one_gaussian_and_grows_with_the_shift():
    root = np.eye(3)
    reference = gaussian(2000, np.zeros(3), root, 0)
    same = metrics.kernel_distance(gaussian(2000, np.zeros(3), root, 1), reference)
    assert same.low <= 0 < same.high
    # E (x.y/D + 1)^3 in closed form: for independent x ~ N(a, I), y ~ N(b, I) in D dimensions, u = x.y/D has
    # E u = a.b/D, E u^2 = (a.b)^2 + |a|^2 + |b|^2 + D over D^2, and E u^3 from 2-million-pair simulation is avoided:
    # along one axis, with D = 1, moments of a product of Gaussians are products of moments.
    a, b = 1.5, 0.0
    one, other = gaussian(4000, [a], [[1.0]], 2), gaussian(4000, [b], [[1.0]], 3)

    def raw(mean):
        return 1.0, mean, mean**2 + 1, mean**3 + 3 * mean

    def expected(p, q):
        return sum(math.comb(3, k) * raw(p)[k] * raw(q)[k] for k in range(4))

    truth = expected(a, a) + expected(b, b) - 2 * expected(a, b)
    found = metrics.kernel_distance(one, other)
    assert found.value == pytest.approx(truth, rel=0.2) and found.low < truth < found.high
    with pytest.raises(ValueError, match="at least 20"):
        metrics.kernel_distance(one[:19], other)


# ---- precision and recall ----


def slow_inside(queries, points, k=metrics.NEIGHBOURS):
    inside = 0
    radii = [sorted(math.dist(p, q) for q in points)[k] for p in points]  # the point itself is the 0th
    for query in queries:
        inside += any(math.dist(query, point) <= radius for point, radius in zip(points, radii, strict=True))
    return inside / len(queries)


def test_precision_and_recall_agree_with_a_slow_loop():
    samples = gaussian(60, [0.5, 0.0], 0.5 * np.eye(2), 0)
    reference = gaussian(80, [0.0, 0.0], np.eye(2), 1)
    precision, recall = metrics.precision_and_recall(samples, reference)
    assert precision.value == slow_inside(samples.tolist(), reference.tolist())
    assert recall.value == slow_inside(reference.tolist(), samples.tolist())
    assert precision.value > recall.value  # a narrow set lies within a wide one, and not the other way


def test_a_collapsed_set_is_precise_and_recalls_what_it_is_alone():
    reference = gaussian(100, [0.0, 0.0], np.eye(2), 1).float()
    copies = reference[:1].expand(50, 2)
    precision, recall = metrics.precision_and_recall(copies, reference)
    assert precision.value == 1.0 and recall.value == 0.01
    with pytest.raises(ValueError, match="3 samples"):
        metrics.precision_and_recall(copies[:3], reference)


def test_blocks_do_not_change_the_result(monkeypatch):
    samples, reference = gaussian(70, [0.3, 0.0], np.eye(2), 0), gaussian(90, [0.0, 0.0], np.eye(2), 1)
    whole = metrics.precision_and_recall(samples, reference)
    monkeypatch.setattr(metrics, "ROWS", 7)
    assert metrics.precision_and_recall(samples, reference) == whole


# ---- shares and means ----


def test_a_share_has_wilsons_interval():
    figure = metrics.share(8, 10)  # the textbook example: 0.490 ... 0.943
    assert (figure.value, round(figure.low, 3), round(figure.high, 3)) == (0.8, 0.49, 0.943)
    assert metrics.share(0, 5).low == 0.0 and metrics.share(5, 5).high == 1.0
    with pytest.raises(ValueError, match="no images"):
        metrics.share(0, 0)


def test_a_mean_has_its_normal_interval():
    figure = metrics.mean(torch.tensor([1.0, 2.0, 3.0, 4.0]), limits=metrics.DISTANCE)
    half = 1.96 * np.std([1, 2, 3, 4], ddof=1) / 2
    assert figure.value == 2.5 and figure.high - 2.5 == pytest.approx(half)
    with pytest.raises(ValueError, match="no images"):
        metrics.mean(torch.zeros(0), limits=metrics.DISTANCE)
