"""Differentiable augmentation against a slow reference: one image and one pixel at a time."""

import pytest
import torch

from nvg.training.diffaug import augment, cut_out, recolour, translate

SIZES = [(1, 32, 32), (3, 16, 16), (3, 17, 24)]


def some_images(channels, height, width, count=4):
    return torch.rand(count, channels, height, width, generator=torch.Generator().manual_seed(3)) * 2 - 1


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("shape", SIZES)
def test_colours_are_the_formula_image_by_image(shape):
    images = some_images(*shape)
    draws = torch.rand(3, len(images), generator=seeded())
    for image, (brightness, saturation, contrast), found in zip(
        images, draws.T.tolist(), recolour(images, seeded()), strict=True
    ):
        expected = image + brightness - 0.5
        grey = sum(expected) / len(expected)
        expected = torch.stack([(channel - grey) * 2 * saturation + grey for channel in expected])
        expected = (expected - expected.mean()) * (contrast + 0.5) + expected.mean()
        torch.testing.assert_close(found, expected)


def moved(image, down, right):
    """The picture moved, pixel by pixel, zeros coming in."""
    result = torch.zeros_like(image)
    _, height, width = image.shape
    for row in range(height):
        for column in range(width):
            if 0 <= row + down < height and 0 <= column + right < width:
                result[:, row, column] = image[:, row + down, column + right]
    return result


@pytest.mark.parametrize("shape", SIZES)
def test_translation_moves_by_an_eighth_at_most_and_brings_zeros_in(shape):
    images = some_images(*shape, count=2)
    rows, columns = (int(side / 8 + 0.5) for side in shape[1:])
    shifts = [(down, right) for down in range(-rows, rows + 1) for right in range(-columns, columns + 1)]
    references = [[moved(image, *shift) for shift in shifts] for image in images]
    seen = set()
    for seed in range(30):
        for found, candidates in zip(translate(images, seeded(seed)), references, strict=True):
            seen |= {shift for shift, one in zip(shifts, candidates, strict=True) if torch.equal(found, one)}
            assert any(torch.equal(found, one) for one in candidates)
    assert len(seen) > 10  # images and draws differ


@pytest.mark.parametrize("shape", SIZES)
def test_a_cut_is_a_rectangle_of_half_the_sides_as_far_as_it_is_within(shape):
    images = some_images(*shape) + 3.0  # no zero of its own
    sizes, whole = [int(side / 2 + 0.5) for side in shape[1:]], 0
    for seed in range(40):
        for image, found in zip(images, cut_out(images, seeded(seed)), strict=True):
            cut = found[0] == 0
            assert torch.equal(found, torch.where(cut, 0.0, image))
            rows, columns = cut.any(1).nonzero().flatten(), cut.any(0).nonzero().flatten()
            for places, side, size in zip((rows, columns), shape[1:], sizes, strict=True):
                extent = int(places[-1] - places[0]) + 1
                assert extent == len(places) <= size
                assert extent == size or places[0] == 0 or places[-1] == side - 1  # a smaller one leaves the image
            assert int(cut.sum()) == len(rows) * len(columns)
            whole += [len(rows), len(columns)] == sizes
    assert whole > 10


def test_gradients_reach_the_pixels_that_stay_and_draws_are_the_generator_s():
    images = some_images(3, 32, 32).requires_grad_()
    result = augment(images, seeded(5))
    result.sum().backward()
    assert images.grad is not None and images.grad.abs().sum() > 0
    torch.testing.assert_close(augment(images, seeded(5)), result)
    assert not torch.equal(augment(images, seeded(6)), result)
