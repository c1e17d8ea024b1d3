"""Learning rates at the steps where they change."""

import math

import pytest

from nvg.training.schedule import scaled_lr, warmup_cosine, warmup_stable_decay

PAPER = {"warmup": 1000, "decay_share": 0.2, "final": 0.1}


def test_lr_grows_linearly_with_the_batch():
    assert scaled_lr(1e-4, 256) == 1e-4
    assert scaled_lr(1e-4, 768) == pytest.approx(3e-4)


@pytest.mark.parametrize(
    ("step", "factor"),
    [
        (0, 0.001),
        (499, 0.5),
        (999, 1.0),
        (1000, 1.0),
        (79_999, 1.0),
        (80_000, 1.0 - 0.9 / 20_000),
        (89_999, 0.55),
        (99_999, 0.1),
        (150_000, 0.1),
    ],
)
def test_warmup_stable_decay(step, factor):
    assert warmup_stable_decay(step, 100_000, **PAPER) == pytest.approx(factor)


def test_a_schedule_without_warmup_and_decay_is_constant():
    factors = {warmup_stable_decay(step, 10, warmup=0, decay_share=0.0, final=0.1) for step in range(10)}
    assert factors == {1.0}


def test_warmup_longer_than_the_training_stays_below_its_top():
    assert warmup_stable_decay(9, 10, warmup=100, decay_share=0.0, final=0.1) == pytest.approx(0.1)


def test_cosine_falls_to_zero():
    factors = [warmup_cosine(step, 1000, warmup=100) for step in range(1000)]
    assert factors[0] == pytest.approx(0.01) and factors[99] == factors[100] == 1.0
    assert factors[550] == pytest.approx(0.5)
    assert factors[-1] == pytest.approx(0.5 + 0.5 * math.cos(math.pi * 899 / 900))
    assert all(later < earlier for earlier, later in zip(factors[100:], factors[101:], strict=False))
