"""Schedules against the released ones: guidance, top-p, flow times, and learning rates as far as equal."""

import pytest
import torch

from nvg.generator.schedules import falling_top_p, flow_times, ramp
from nvg.training.schedule import scaled_lr, warmup_stable_decay
from tests.release import ours, recipe

LAST = ours.LAST_STAGE


@pytest.fixture(scope="module")
def golden():
    return recipe.golden("sampler")


def test_guidance_rises_as_the_released_one(golden):
    content = torch.cat([ramp(torch.tensor([3.5]), stage, LAST) for stage in range(LAST + 1)])
    assert torch.equal(content.double(), golden["content_guidance"])
    structure = torch.cat([ramp(torch.tensor([2.5]), stage - 1, LAST) for stage in range(1, LAST)])
    assert torch.equal(structure.double(), golden["structure_guidance"][:7])


def test_top_p_falls_as_the_released_one(golden):
    found = torch.cat([falling_top_p(torch.tensor([0.5]), stage, LAST) for stage in range(LAST + 1)])
    torch.testing.assert_close(found.double(), golden["top_p"], rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "steps", "positions"),
    [("times25", 25, 256), ("times50", 50, 256), ("times1", 1, 256), ("times8_of_64", 8, 64)],
)
def test_flow_times_are_the_released_ones(name, steps, positions, golden):
    found = flow_times(steps, torch.tensor([0.5]), positions)[:, 0]
    torch.testing.assert_close(found, golden[name], rtol=0, atol=2e-7)


def test_learning_rates_hold_and_end_as_the_released_ones():
    """Two differences stay (docs/method.md): theirs begins at 0.5% of the rate, and its fall starts 1,000 steps later,
    when 80% of all steps have followed the warm-up."""
    numbers = recipe.golden("training")
    total, warmup = 333_000, 1_000
    for step, expected in zip(numbers["schedule.steps"].tolist(), numbers["schedule.lr"].tolist(), strict=True):
        rate = scaled_lr(1e-4, 768) * warmup_stable_decay(step, total, warmup=warmup, decay_share=0.2, final=0.1)
        if warmup <= step < 0.8 * total or step >= total - 1:
            assert rate == pytest.approx(expected, rel=1e-3 if step >= total - 1 else 1e-9), step
        elif step < warmup:
            assert abs(rate - expected) <= 0.006 * 3e-4, step
        else:
            assert 0 < expected - rate <= 0.014 * 3e-4, step
