"""The gallery: the page says what its command writes, and every figure shows what it says."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import nvg
from nvg.data import open_source
from nvg.data.images import decode_image, to_float
from nvg.generator.batches import to_pixels
from scripts.release.gallery import figures
from scripts.release.gallery.__main__ import ROOT, main
from scripts.release.gallery.figures import FIGURES, MOST_FILM_BYTES, Scene, choice, held_out, tiles
from scripts.release.gallery.page import TEXTS, figure_name, page
from tests.support.synthetic import CLASSES, write_images
from tests.support.toy_config import toy_config, toy_sampler, write_toy_sampler

SHOWN = ["fashion-mnist"]  # the samplers of docs/gallery.md


def test_the_page_is_what_the_command_writes() -> None:
    assert (ROOT / "docs" / "gallery.md").read_text() == page({name: nvg.load(name) for name in SHOWN})


@pytest.mark.parametrize("name", SHOWN)
@pytest.mark.parametrize("file", FIGURES)
def test_every_figure_is_there_and_films_are_small(name: str, file: str) -> None:
    path = ROOT / "docs" / "figures" / figure_name(name, file)
    with Image.open(path) as picture:
        assert getattr(picture, "n_frames", 1) == (5 if path.suffix == ".webp" else 1)
    assert path.stat().st_size <= MOST_FILM_BYTES


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """An untrained sampler of 8x8 latents in colour, and images of its classes."""
    folder = write_images(tmp_path_factory.mktemp("images"), each=3, size=32)
    data = {"train": folder, "test": folder, "image_size": 32, "channels": 3, "num_classes": 3}
    config = toy_config(data=data, tokenizer={"widths": [16, 16, 16]})
    sampler = toy_sampler(config, CLASSES)
    chosen = choice("another", sampler)
    return Scene(sampler, chosen, held_out(config.data, CLASSES, chosen.images()))


def test_every_figure_has_its_text_and_the_sizes_are_the_sampler_s(scene: Scene) -> None:
    assert list(TEXTS) == list(FIGURES)
    text = page({"another": scene.sampler})
    assert "32x32 pixels on 8x8 latents: 7 stages with 127 tokens." in text and "in 3 classes" in text


def test_an_edit_that_keeps_all_is_the_reconstruction_and_one_that_keeps_nothing_a_sample(scene: Scene) -> None:
    picture = np.asarray(Image.open(io.BytesIO(figures.edit(scene))))
    name, number, other = scene.choice.edits[0]
    image = scene.images[name, number][None]
    decoded = to_pixels(scene.sampler.tokenizer.decode(scene.sampler.tokenizer.encode(to_float(image))))
    for made, column in ((image, 0), (decoded, 1), (scene.sampler.generate([other], seed=0), -1)):
        (shown,) = map(np.asarray, tiles(made))
        side, count = shown.shape[0], scene.sampler.last_stage + 3
        left = picture.shape[1] - 16 - (count - column % count) * (side + 4) + 4
        assert np.array_equal(picture[40 : 40 + side, left : left + side], shown), column


def test_held_out_images_are_those_of_their_number_in_reading_order(scene: Scene, tmp_path: Path) -> None:
    folder = Path(write_images(tmp_path, each=4, size=32, seed=1))
    data = toy_config(data={"test": str(folder), "image_size": 32, "channels": 3, "num_classes": 3}).data
    source = open_source(data, "test")
    records = [record for unit in source.units for record in source.read(unit)]
    squares = [decode_image(record.data, 3) for record in records if record.label == CLASSES.index("square")]
    found = held_out(data, CLASSES, [("square", 2), ("disc", 0)])
    assert set(found) == {("square", 2), ("disc", 0)}
    assert np.array_equal(found["square", 2], squares[2])
    with pytest.raises(ValueError, match="class 'disc' has 4 held-out images, number 4 is to be shown"):
        held_out(data, CLASSES, [("disc", 4)])


def test_a_film_that_is_too_large_shows_fewer_classes(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = figures.classes_film(scene)
    monkeypatch.setattr(figures, "MOST_FILM_BYTES", len(whole) - 1)
    less = figures.classes_film(scene)
    assert Image.open(io.BytesIO(less)).width < Image.open(io.BytesIO(whole)).width
    monkeypatch.setattr(figures, "MOST_FILM_BYTES", 10)
    with pytest.raises(ValueError, match="a film of one class has .* bytes, more than 10"):
        figures.classes_film(scene)


@pytest.mark.slow  # half a minute of a core
def test_one_command_draws_all_and_a_class_without_images_is_one_line(tmp_path: Path) -> None:
    images = Path(write_images(tmp_path / "images", each=3, size=32))
    data = {"train": str(images), "test": str(images), "image_size": 32, "channels": 3, "num_classes": 3}
    config = toy_config(data=data, tokenizer={"widths": [16, 16, 16]})
    folder, out = write_toy_sampler(tmp_path / "toy", config, CLASSES), tmp_path / "docs" / "gallery.md"
    main(["--sampler", folder, "--out", str(out)])
    assert out.read_text() == page({"toy": nvg.load(folder)})
    made = {path.name: path for path in (out.parent / "figures").iterdir()}
    assert set(made) == {figure_name("toy", file) for file in FIGURES}
    for path in made.values():
        with Image.open(path) as picture:
            assert picture.format == path.suffix[1:].upper()
    for path in (images / "disc").glob("*.png"):
        path.unlink()
    with pytest.raises(SystemExit, match="^error: data.test=.* has 2 classes") as stopped:
        main(["--sampler", folder, "--out", str(out)])
    assert "\n" not in str(stopped.value)
