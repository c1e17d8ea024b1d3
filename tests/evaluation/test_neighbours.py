"""Nearest training images: a planted copy is found, and held-out images are the yardstick."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nvg import storage
from nvg.errors import DataError
from nvg.evaluation.classifier import Classifier, ClassifierConfig, save_classifier
from nvg.evaluation.features import FeatureNetwork
from nvg.evaluation.neighbours import SPACES, Images, Nearest, picture, summary
from scripts.release import model_card, neighbours
from tests.support.synthetic import CLASSES, write_images
from tests.support.toy_config import toy_config, toy_sampler, write_toy_sampler


def some_images(count: int, seed: int) -> Images:
    rng = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, 8, 8, 3), generator=rng, dtype=torch.uint8)
    return Images(pixels, torch.randn(count, 5, generator=rng))


def part(images: Images, index: slice | list[int]) -> Images:
    return Images(images.pixels[index], images.features[index])


@pytest.mark.parametrize("space", SPACES)
def test_a_planted_copy_is_found_at_distance_0_with_its_image(space: str) -> None:
    training, queries = some_images(40, 0), some_images(6, 1)
    queries.pixels[4], queries.features[4] = training.pixels[23], training.features[23]
    found = Nearest(queries, space, 2, keep=True)
    for start in range(0, 40, 7):
        found.add(part(training, slice(start, start + 7)))
    zero = (found.distances[:, 0] == 0).nonzero().flatten().tolist()
    assert zero == [4] and found.numbers[4, 0] == 23
    assert np.array_equal(found.images(4)[0], training.pixels[23].numpy())
    assert np.array_equal(found.images(0)[1], training.pixels[found.numbers[0, 1]].numpy())


def test_neighbours_of_a_stream_are_those_of_all_images_at_once() -> None:
    training, queries = some_images(50, 2), some_images(8, 3)
    pairs = (queries.pixels[:, None].double() - training.pixels[None].double()).square().flatten(2).mean(2).sqrt()
    found = Nearest(queries, "pixels", 3)
    for start in range(0, 50, 11):
        found.add(part(training, slice(start, start + 11)))
    expected = pairs.sort(dim=1)
    assert torch.equal(found.numbers, expected.indices[:, :3])
    assert torch.allclose(found.distances.double(), expected.values[:, :3], rtol=1e-5)


def test_samples_that_are_as_near_as_held_out_images_are_near_in_one_of_twenty_and_copies_in_all() -> None:
    held_out = torch.rand(2000, generator=torch.Generator().manual_seed(0)) + 1
    alike = torch.rand(2000, generator=torch.Generator().manual_seed(1)) + 1
    fair = summary({"samples": alike, "held_out": held_out, "reconstructions": held_out})
    low, high = fair["nearer"]["held_out"]["interval"]
    assert low < 0.05 < high and high - low < 0.03 and fair["copies"] == 0
    copied = summary({"samples": torch.zeros(10), "held_out": held_out, "reconstructions": torch.zeros(5)})
    assert copied["copies"] == 10 and copied["quantiles"]["samples"]["0.95"] == 0
    assert [one["share"] for one in copied["nearer"].values()] == [1.0, 1.0]


def test_the_nearest_samples_come_first_beside_their_neighbours() -> None:
    training, queries = some_images(20, 4), some_images(5, 5)
    queries.pixels[3], queries.features[3] = training.pixels[7], training.features[7]
    nearest = {space: Nearest(queries, space, 2, keep=True) for space in SPACES}
    for some in nearest.values():
        some.add(training)
    shown = np.asarray(picture(queries, nearest, [0, 0, 0, 1, 0], ["a", "b"], rows=2))
    side, top = 96, 60
    left = shown.shape[1] - 16 - 5 * 100 + 4
    tiles = [shown[top : top + side : 12, left + k * 100 : left + k * 100 + side : 12] for k in range(5)]
    for column in (0, 1, 3):  # the sample, and its copy in both spaces
        assert np.array_equal(tiles[column], training.pixels[7].numpy())
    assert np.array_equal(tiles[2], nearest["features"].images(3)[1])


# ---- of a sampler ----


@pytest.fixture
def measured(tmp_path: Path):
    """measured(planted): the result of an untrained sampler, of whose samples some are among the training images."""
    config = toy_config(data={"image_size": 32, "channels": 3, "num_classes": 3}, tokenizer={"widths": [16, 16, 16]})
    sampler = toy_sampler(config, CLASSES)
    torch.manual_seed(0)
    network = FeatureNetwork(Classifier(ClassifierConfig(3)).eval())

    def run(planted: int, test: bool = True):
        folder = write_images(tmp_path / f"train{planted}", each=10, size=32)
        for number, image in enumerate(neighbours.draw(sampler, [0, 1, 2], 0)[:planted]):
            Image.fromarray(image).save(Path(folder) / "disc" / f"planted{number}.png")
        held_out = write_images(tmp_path / "test", each=5, size=32, seed=1)
        data = {"train": folder, "test": held_out if test else None, "image_size": 32, "channels": 3, "num_classes": 3}
        return neighbours.measure(sampler, toy_config(data=data).data, network, samples=9, held_out=12, seed=0)

    return run


def test_samples_that_were_put_among_the_training_images_are_counted(measured) -> None:
    for planted in (0, 2):
        result, shown = measured(planted)
        assert result["training_images"] == 30 + planted and result["held_out"] == 12
        assert result["pixels"]["copies"] == planted
        assert shown.height > 9 * 96
    assert result["pixels"]["nearer"]["held_out"]["share"] >= 2 / 9


def test_without_held_out_images_there_is_no_yardstick(measured) -> None:
    with pytest.raises(DataError, match="data.test is not set: .* yardstick"):
        measured(0, test=False)


def test_the_card_says_how_near_samples_are(measured) -> None:
    text = model_card.neighbours("toy", measured(1)[0])
    said = " ".join(text.split())
    assert "9 samples, 12 held-out images and" in said and "the nearest of 31 training images" in said
    rows = [line for line in text.splitlines() if line.startswith(("| features", "| pixels"))]
    assert [row.split(" | ")[-1] for row in rows][1] == "1 |" and len(rows) == 2
    assert all(row.count("|") == 8 and row.count("%") == 6 for row in rows)


def test_the_command_writes_beside_the_sampler_and_a_missing_classifier_is_one_line(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", each=4, size=32)
    data = {"train": images, "test": images, "image_size": 32, "channels": 3, "num_classes": 3}
    config = toy_config(data=data, tokenizer={"widths": [16, 16, 16]})
    folder = write_toy_sampler(tmp_path / "toy", config, CLASSES)
    arguments = [folder, "--samples", "4", "--held-out", "5", "--figures", str(tmp_path / "figures")]
    with pytest.raises(SystemExit, match=r"^error: .*classifier\.safetensors") as stopped:
        neighbours.main(arguments)
    assert "\n" not in str(stopped.value)
    save_classifier(Classifier(ClassifierConfig(3)), f"{folder}/classifier.safetensors")
    neighbours.main(arguments)
    result = storage.read_json(f"{folder}/neighbours.json")
    assert result["network"].startswith("classifier ") and (result["samples"], result["held_out"]) == (4, 5)
    # The held-out images are the training images: the yardstick is 0, and no sample that is no copy is nearer.
    assert (
        result["pixels"]["quantiles"]["held_out"]["0.95"] == 0 and result["pixels"]["nearer"]["held_out"]["share"] == 0
    )
    assert (tmp_path / "figures" / "neighbours_toy.png").is_file()
