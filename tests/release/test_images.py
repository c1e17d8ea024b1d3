"""Images as the released system reads them: the shorter side to 1.125 times the size, a crop of that."""

import numpy as np
import pytest
from PIL import Image

from nvg.data import make_view
from nvg.data.images import crop_of_lanczos8
from nvg.evaluation.work import cut_pixels
from nvg.generator.batches import to_pixels
from tests.release.recipe import golden
from tests.support.pictures import config

SIZES = {"landscape": 32, "portrait": 64, "small": 32}  # of the crops


def differences(found, expected):
    return np.abs(found.astype(int) - expected.numpy().astype(int))


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("channels", [3, 1])
def test_the_centre_is_the_released_crop_to_one_level(name, channels):
    numbers, size = golden("images"), SIZES[name]
    image, crop = numbers[f"{name}.image"], numbers[f"{name}.crop"]
    picture = Image.fromarray(image.numpy() if channels == 3 else image[:, :, 0].numpy())
    view = make_view(picture, config(image_size=size, crop_scale=1.125, resize="lanczos8"), 0, 0, "x")
    away = differences(view, crop[:, :, :channels])
    assert away.max() <= 1 and (away > 0).mean() < 0.1
    antialiased = make_view(picture, config(image_size=size, crop_scale=1.125), 0, 0, "x")
    assert differences(antialiased, crop[:, :, :channels]).max() > 10  # so that the lines above say something


@pytest.mark.parametrize("name", SIZES)
def test_the_whole_resized_image_is_the_released_one_to_one_level(name):
    """Crops at all four corners, whose pixels repeat the borders."""
    numbers, size = golden("images"), SIZES[name]
    image, resized = numbers[f"{name}.image"].numpy(), numbers[f"{name}.resized"]
    for across in (0.0, 1.0):
        for down in (0.0, 1.0):
            found = crop_of_lanczos8(image, min(resized.shape[:2]), size, across, down)
            left, top = round((resized.shape[1] - size) * across), round((resized.shape[0] - size) * down)
            assert differences(found, resized[top : top + size, left : left + size]).max() <= 1


def test_measured_pixels_are_the_released_evaluations():
    numbers = golden("pixels")
    released = numbers["pixels"].numpy()
    assert np.array_equal(cut_pixels(numbers["image"]).numpy(), released)
    assert 0.4 < (to_pixels(numbers["image"]) != released).mean() < 0.6  # rounding is another thing
