"""`nvg sample`: the picture is what the sampler draws, and wrong input is one line."""

import io

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageSequence

import nvg
from nvg import sample
from nvg.generator.controls import given_from_drawing
from nvg.pictures import sample_grid, stages_film, stages_picture
from nvg.serving.images import open_drawing
from tests.support.threads import one_thread

__all__ = ["one_thread"]

FAST = "fashion-mnist-fast"  # one step a stage


@pytest.fixture(scope="module")
def sampler():
    return nvg.load(FAST)


@pytest.fixture
def draw(tmp_path, capsys):
    """draw(*arguments): the picture that the command writes, and its words."""

    def run(*arguments):
        path = tmp_path / "picture.png"
        sample.main([FAST, "--output", str(path), *arguments])
        with Image.open(path) as picture:
            return np.asarray(picture), capsys.readouterr().out

    return run


def drawing(path, size=(40, 40), box=(5, 5, 25, 30)):
    picture = Image.new("L", size, 0)
    ImageDraw.Draw(picture).rectangle(box, fill=255)
    picture.save(path)
    return str(path)


def test_a_row_of_images_a_class_in_the_order_that_was_asked(sampler, draw):
    picture, said = draw("--classes", "Coat, Bag", "--count", "2", "--seed", "7")
    images = sampler.generate(["Coat", "Coat", "Bag", "Bag"], seed=7)
    assert np.array_equal(picture, np.asarray(sample_grid(images, [0, 0, 1, 1], ["Coat", "Bag"])))
    assert "picture.png: 2 classes, 2 images per row; seeds 7 ... 10, row by row." in said


def test_all_classes_unless_some_are_named(sampler, draw):
    picture, said = draw()
    images = sampler.generate(sampler.class_names, seed=0)
    assert np.array_equal(picture, np.asarray(sample_grid(images, range(10), sampler.class_names)))
    assert "10 classes, one image per row; seeds 0 ... 9" in said


def test_more_images_than_a_batch_are_those_of_the_sampler(sampler, draw, monkeypatch):
    arguments = ["--classes", "Bag,Coat", "--count", "2"]
    whole, stages = draw(*arguments)[0], draw(*arguments, "--stages")[0]
    monkeypatch.setattr(sample, "BATCH", 3)
    assert np.array_equal(draw(*arguments)[0], whole)
    assert np.array_equal(draw(*arguments, "--stages")[0], stages)


def test_every_stage_of_each_image(sampler, draw):
    picture, said = draw("--classes", "Bag,4", "--stages", "structure_temperature=0.5", "flow_steps=2")
    steps = list(sampler.stages(["Bag", "Coat"], seed=0, structure_temperature=0.5, flow_steps=2))
    previews = [step.preview for step in steps]
    expected = stages_picture(steps[-1].sequence_codes, previews, [0, 1], ["Bag", "Coat"])
    assert np.array_equal(picture, np.asarray(expected))
    assert "2 images, seeds 0 ... 1 from top to bottom" in said


def test_a_film_shows_every_stage_of_each_image(sampler, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sample, "BATCH", 3)  # more than one batch
    path = tmp_path / "film.webp"
    sample.main([FAST, "--classes", "Bag,4", "--count", "2", "--seed", "5", "--film", str(path), "flow_steps=2"])
    steps = list(sampler.stages(["Bag", "Bag", "Coat", "Coat"], seed=5, flow_steps=2))
    previews = [step.preview for step in steps]
    expected = stages_film(steps[-1].sequence_codes, previews, [0, 0, 1, 1], ["Bag", "Coat"])
    with Image.open(path) as film:
        assert film.format == "WEBP" and film.n_frames == sampler.last_stage + 1
        for frame, picture in zip(ImageSequence.Iterator(film), expected, strict=True):
            assert np.array_equal(frame.convert("RGB"), picture)
    assert "4 images, seeds 5 ... 8 from top to bottom, column by column; the structure map" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == [path]  # no PNG beside it


def test_a_drawing_is_the_structure_of_stage_one_of_every_image(sampler, draw, tmp_path):
    path = drawing(tmp_path / "drawing.png")
    picture, said = draw("--classes", "Bag,Coat", "--structure", path, "--stages")
    with open(path, "rb") as file:
        shape = open_drawing(file.read(), max_pixels=10**6, field="drawing")
    given = given_from_drawing(shape, sampler.tokenizer.config.grid)
    steps = list(sampler.stages(["Bag", "Coat"], seed=0, given=given))
    expected = stages_picture(steps[-1].sequence_codes, [step.preview for step in steps], [0, 1], ["Bag", "Coat"])
    assert np.array_equal(picture, np.asarray(expected))
    assert "positions moved to the other side" in said
    half = drawing(tmp_path / "half.png", box=(0, 0, 19, 40))
    assert "its two sides are equal" in draw("--classes", "Bag", "--structure", half)[1]


def test_of_many_classes_evenly_spaced_ones_are_shown_and_a_name_may_hold_commas(sampler):
    many = type(sampler)(
        sampler.tokenizer,
        sampler.content,
        sampler.structure,
        sampler.settings,
        [f"{number}th, of many" for number in range(28)],
    )
    assert sample.chosen_classes(many, None) == list(range(0, 28, 3))
    assert sample.chosen_classes(many, "3th, of many") == [3]
    assert sample.chosen_classes(many, "3,1, 3") == [3, 1]


def test_classes_of_one_name_and_names_that_are_numbers_are_drawn_by_their_indices(sampler):
    names = ["a", "a", "b", "1", *"456789"]
    parts = (sampler.tokenizer, sampler.content, sampler.structure, sampler.settings)
    twins = type(sampler)(*parts, names)
    assert sample.chosen_classes(twins, "1,0, b") == [3, 0, 2]  # "1" is the name of class 3
    assert sample.chosen_classes(twins, None) == list(range(10))
    with pytest.raises(ValueError, match="2 classes are called 'a': give an index, 0 or 1"):
        sample.chosen_classes(twins, "a")
    two, other = (Image.open(io.BytesIO(sample.draw_grid(one, [0, 1], 0, None, {}))).height for one in (twins, sampler))
    assert two == other  # each has a row of its own, though both are called a
    assert sample._rows(twins, [0, 1, 1]) == (["a", "a"], [0, 1, 1])


def test_pictures_go_to_the_home_folder_that_settings_have(draw, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    sample.main([FAST, "--classes", "Bag", "--output", "~/bag.png"])
    assert (tmp_path / "bag.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "no sampler 'nowhere': .*fashion-mnist"),
        ([FAST, "--classes", "Bga"], "no class 'Bga'; the classes are T-shirt/top, Trouser"),
        ([FAST, "--classes", "Bag,10"], "class 10 is none of 0 ... 9"),
        ([FAST, "--classes", ""], "no class ''; the classes are"),
        ([FAST, "structure_temperatur=1"], "no sampler setting 'structure_temperatur'; there are flow_steps, "),
        ([FAST, "top_p"], "'top_p' is no setting: write key=value"),
        ([FAST, "top_p=much"], "top_p=much: 'much' is no number"),
        ([FAST, "flow_steps=1.5"], "flow_steps=1.5: '1.5' is no whole number"),
        ([FAST, "top_p=2"], "top_p=2.0 must be at least 0.001, at most 1"),
        (
            [FAST, "content_temperature=nan"],
            "content_temperature=nan must be a finite number, ",
        ),
        ([FAST, "structure_guidance=9"], "structure_guidance=9: this model has learned guidance"),
        ([FAST, "--structure", "/no/drawing.png"], "--structure /no/drawing.png: no such file"),
        ([FAST, "--structure", "/"], "Is a directory"),
        ([FAST, "--output", "grid.gif"], "--output grid.gif: a PNG is written: give a name that ends in .png"),
        ([FAST, "--film", "film.gif"], "--film film.gif: an animated WebP is written: give a name that ends in .webp"),
        ([FAST, "--film", ""], "--film : an animated WebP is written"),
    ],
)
def test_wrong_input_is_one_line_that_says_what_to_do(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=f"^error: .*{message}") as stop:
        sample.main(arguments)
    assert "\n" not in str(stop.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no picture", "is no picture of a known format"),
        (b"", "is no picture of a known format"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 20, "cannot be read|is no picture"),
    ],
)
def test_a_drawing_that_is_no_image_is_refused_by_its_name(content, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "drawing.png").write_bytes(content)
    with pytest.raises(SystemExit, match=f"^error: --structure drawing.png ({message})"):
        sample.main([FAST, "--structure", "drawing.png"])


def test_a_drawing_without_a_shape_is_refused(tmp_path):
    empty = drawing(tmp_path / "empty.png", box=(0, 0, 0, 0))
    with pytest.raises(SystemExit, match="^error: --structure .*empty.png: drawing 0 is empty on the 4 x 4 grid"):
        sample.main([FAST, "--structure", empty])


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        [FAST, "--count", "0"],
        [FAST, "--count", "two"],
        [FAST, "--seed", "x"],
        [FAST, "--seed", "-1"],
        [FAST, "--seed", str(2**40)],  # which drew what seed 0 draws
        [FAST, "--film", "film.webp", "--output", "grid.png"],  # one file is written
    ],
)
def test_bad_usage_is_exit_code_2(arguments):
    with pytest.raises(SystemExit) as stop:
        sample.main(arguments)
    assert stop.value.code == 2
