"""The adversarial losses against their formulas, entry by entry."""

import math

import pytest
import torch

from nvg.training.discriminator import LogitAverages, discriminator_loss, generator_loss

REAL = torch.tensor([[2.0, 0.5], [-1.0, 1.0]])
FAKE = torch.tensor([[-2.0, 0.0], [1.0, -0.5]])


def test_the_discriminator_s_loss_is_half_the_hinge_losses():
    assert discriminator_loss(REAL, FAKE).item() == pytest.approx(0.5 * ((0 + 0.5 + 2 + 0) + (0 + 1 + 2 + 0.5)) / 4)


def test_the_decoder_s_loss_is_softplus_of_an_image_s_mean_logit():
    means = [-1.0, 0.25]
    assert generator_loss(FAKE).item() == pytest.approx(sum(math.log1p(math.exp(-mean)) for mean in means) / 2)


def test_the_decoder_s_gradient_does_not_vanish_where_the_discriminator_is_sure():
    logits = torch.full((2, 3), -30.0, requires_grad=True)
    generator_loss(logits).backward()
    torch.testing.assert_close(logits.grad, torch.full((2, 3), -1 / 6))


def test_lecam_is_its_formula_entry_by_entry():
    averages = LogitAverages()
    averages.means.copy_(torch.tensor([0.75, -0.25]))
    above = [max(value + 0.25, 0.0) ** 2 for value in REAL.flatten().tolist()]
    below = [max(0.75 - value, 0.0) ** 2 for value in FAKE.flatten().tolist()]
    assert averages.penalty(REAL, FAKE).item() == pytest.approx(sum(above) / 4 + sum(below) / 4)


def test_the_averages_begin_at_zero_and_keep_999_of_1000_parts():
    averages = LogitAverages()
    assert averages.means.tolist() == [0.0, 0.0]
    expected = [0.0, 0.0]
    for step in range(1, 4):
        averages.update(torch.tensor([2.0 * step, -1.0 * step]))
        expected = [0.999 * expected[0] + 0.001 * 2.0 * step, 0.999 * expected[1] - 0.001 * step]
    assert averages.means.tolist() == pytest.approx(expected, rel=1e-5)
    assert list(averages.state_dict()) == ["means"]  # so that a checkpoint has them
