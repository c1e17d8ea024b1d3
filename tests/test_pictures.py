"""Picture grids: sizes, places and the nesting palette."""

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from nvg.pictures import (
    BACKGROUND,
    FRAME_MS,
    LAST_FRAME_MS,
    cluster_colours,
    film,
    reconstruction_picture,
    sample_grid,
    stages_film,
    stages_picture,
)


def plain(colours: list[tuple[int, ...]], side: int = 32) -> np.ndarray:
    """Images of one colour each, (N, side, side, C) uint8."""
    return np.array(colours, dtype=np.uint8)[:, None, None, :].repeat(side, 1).repeat(side, 2)


def runs(line: np.ndarray) -> list[tuple[tuple[int, ...], int]]:
    """A line of pixels (n, 3) as (colour, length) runs, the background left out."""
    result: list[tuple[tuple[int, ...], int]] = []
    before = None
    for pixel in map(tuple, line.tolist()):
        if pixel == before:
            result[-1] = (pixel, result[-1][1] + 1)
        else:
            result.append((pixel, 1))
        before = pixel
    return [run for run in result if run[0] != BACKGROUND]


def tiles(picture: Image.Image, *, least: int) -> list[list[tuple[int, ...]]]:
    """Colours of plain tiles, row by row: the runs of at least `least` pixels on lines that hold some."""
    rows: list[list[tuple[int, ...]]] = []
    for line in np.asarray(picture):
        found = [colour for colour, length in runs(line) if length >= least]
        if found and (not rows or rows[-1] != found):
            rows.append(found)
    return rows


def test_a_row_of_samples_holds_one_class_in_the_given_order() -> None:
    images = plain([(10,), (20,), (30,), (40,), (50,)])
    picture = sample_grid(images, torch.tensor([1, 0, 1, 1, 0]), ["a", "b"], columns=2)
    assert tiles(picture, least=96) == [[(20,) * 3, (50,) * 3], [(10,) * 3, (30,) * 3]]


@pytest.mark.parametrize(("side", "shown"), [(28, 112), (32, 96), (64, 128), (128, 128), (256, 160)])
def test_small_images_grow_by_whole_factors_and_large_ones_shrink(side: int, shown: int) -> None:
    picture = sample_grid(plain([(200, 30, 30)], side), [0], ["x"])
    lines = [length for line in np.asarray(picture) for colour, length in runs(line) if colour == (200, 30, 30)]
    assert set(lines) == {shown} and len(lines) == shown


def test_enlargement_shows_the_pixels_that_were_made() -> None:
    image = np.random.default_rng(0).integers(0, 250, (1, 32, 32, 3), dtype=np.uint8)
    picture = np.asarray(reconstruction_picture(image, image))
    assert picture[16 : 16 + 96, -16 - 96 : -16][::3, ::3].tobytes() == image[0].tobytes()


def test_of_many_classes_an_evenly_spaced_selection_is_shown() -> None:
    images = plain([(number + 1, 0, 0) for number in range(150)])
    picture = sample_grid(images, np.arange(150), [f"a class with a very long name, number {i}" for i in range(150)])
    shown = [row[0][0] - 1 for row in tiles(picture, least=96)]
    assert len(shown) == 10 and shown[0] == 0 and shown[-1] == 149
    assert set(np.diff(shown)) <= {16, 17}
    assert picture.width < 16 + 212 + 96 + 4 + 16  # a long name is cut


@pytest.mark.parametrize(("stages", "channels", "side"), [(4, 1, 32), (5, 3, 64), (8, 3, 256)])
def test_stages_run_coarse_to_fine_with_maps_over_previews(stages: int, channels: int, side: int) -> None:
    positions = 2**stages
    codes = torch.stack([torch.arange(positions), torch.arange(positions).flip(0)])
    previews = [plain([(stage * 20,) * channels, (stage * 20 + 10,) * channels], side) for stage in range(stages + 1)]
    picture = stages_picture(codes, previews, labels=torch.tensor([1, 0]), class_names=["Bag", "Coat"])
    shown = tiles(picture, least=96)
    first, second = ([(stage * 20 + k,) * 3 for stage in range(stages + 1)] for k in (0, 10))
    assert 0 <= shown.index(first) < shown.index(second)
    grey = tuple(cluster_colours(0)[0].tolist())
    assert [row[0] for row in shown].index(grey) < shown.index(first)
    assert picture.width < 1400


def test_a_frame_of_a_film_shows_one_stage_of_every_image_each_class_in_a_column() -> None:
    codes = np.tile(np.arange(4), (4, 1))
    previews = [plain([(stage * 20 + image, 0, 0) for image in range(4)], 96) for stage in range(3)]
    frames = stages_film(codes, previews, [1, 1, 0, 0], ["Bag", "a coat with a very long name"])
    assert len(frames) == 3 and len({frame.size for frame in frames}) == 1
    for stage, frame in enumerate(frames):
        shown = [row for row in tiles(frame, least=96) if row[0][1:] == (0, 0)]
        assert shown == [[(stage * 20 + image, 0, 0) for image in pair] for pair in ((0, 2), (1, 3))]
        colours = {colour for line in np.asarray(frame) for colour, _ in runs(line)}
        assert len(colours & {tuple(colour) for colour in cluster_colours(stage).tolist()}) == 2**stage
    assert frames[0].width < 16 + 90 + 2 * 100 + 16  # a long name is cut over its column


def test_a_film_keeps_every_pixel_and_rests_on_its_last_frame() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 20, 30, 3), dtype=np.uint8)
    with Image.open(io.BytesIO(film([Image.fromarray(one) for one in pixels]))) as made:
        assert made.format == "WEBP" and made.info["loop"] == 0
        found = [(np.asarray(frame.convert("RGB")), frame.info["duration"]) for frame in ImageSequence.Iterator(made)]
    assert [duration for _, duration in found] == [FRAME_MS, FRAME_MS, LAST_FRAME_MS]
    assert all(np.array_equal(frame, one) for (frame, _), one in zip(found, pixels, strict=True))


def test_a_structure_map_is_drawn_in_raster_order() -> None:
    codes = np.array([[0, 1, 2, 3]])  # stage 2 of 2x2 positions
    previews = [plain([(255, 255, 255)], 96)] * 3
    pixels = np.asarray(stages_picture(codes, previews))
    right = pixels.shape[1] - 16
    last = pixels[60 : 60 + 96, right - 96 : right][24::48, 24::48]
    assert last.reshape(4, 3).tolist() == cluster_colours(2).tolist()
    middle = pixels[60 : 60 + 96, right - 196 : right - 100][24::48, 24::48]
    assert middle.reshape(4, 3).tolist() == cluster_colours(1)[[0, 0, 1, 1]].tolist()


def test_colours_of_a_stage_differ_and_lie_near_their_parents() -> None:
    for stage in range(1, 5):
        colours, parents = cluster_colours(stage).astype(int), cluster_colours(stage - 1).astype(int)
        assert len({tuple(colour) for colour in colours.tolist()}) == 2**stage
        if stage > 1:
            distance = np.abs(colours[:, None] - parents[None]).sum(2)  # to every colour of the stage before
            assert (distance.argmin(1) == np.arange(2**stage) // 2).mean() >= 0.75


def test_originals_stand_over_their_reconstructions_in_bands() -> None:
    originals, copies = plain([(n, 0, 0) for n in (1, 2, 3)], 64), plain([(0, n, 0) for n in (1, 2, 3)], 64)
    shown = tiles(reconstruction_picture(originals, copies, columns=2), least=96)
    assert shown == [[(1, 0, 0), (2, 0, 0)], [(0, 1, 0), (0, 2, 0)], [(3, 0, 0)], [(0, 3, 0)]]


def test_input_that_does_not_fit_is_refused() -> None:
    images = plain([(1,), (2,)])
    with pytest.raises(ValueError, match="expected uint8 images"):
        sample_grid(images.astype(np.float32), [0, 1], ["a", "b"])
    with pytest.raises(ValueError, match="2 images and 1 labels"):
        sample_grid(images, [0], ["a"])
    with pytest.raises(ValueError, match="do not fit 1 class names"):
        sample_grid(images, [0, 1], ["a"])
    with pytest.raises(ValueError, match="differ"):
        reconstruction_picture(images, images[:1])
    with pytest.raises(ValueError, match="2 previews for 3 stages"):
        stages_picture(np.zeros((2, 4), dtype=np.int64), [images, images])
    with pytest.raises(ValueError, match="previews of"):
        stages_picture(np.zeros((1, 4), dtype=np.int64), [images] * 3)
    with pytest.raises(ValueError, match="codes of 2 images, 1 labels"):
        stages_film(np.zeros((2, 4), dtype=np.int64), [images] * 3, [0], ["a"])
    with pytest.raises(ValueError, match=r"\[2, 1\] images of the classes: a film shows as many of each"):
        stages_film(np.zeros((3, 4), dtype=np.int64), [images[[0, 0, 0]]] * 3, [0, 1, 0], ["a", "b"])
