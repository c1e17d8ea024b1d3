"""The pieces of an evaluation's work, done without Ray."""

import json
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from nvg import storage
from nvg.config import EvaluateConfig
from nvg.data.images import to_float
from nvg.errors import DataError
from nvg.evaluation.classifier import Classifier, ClassifierConfig
from nvg.evaluation.evaluation import Evaluation
from nvg.evaluation.features import FeatureNetwork
from nvg.evaluation.figures import sample_figures
from nvg.evaluation.reconstruction import mse_by_stages
from nvg.evaluation.reference_images import NpzImages, SplitImages
from nvg.evaluation.work import (
    DrawSamples,
    DrawStages,
    Networks,
    Reconstruct,
    TakeFeatures,
    cut_pixels,
    sample_work,
    stage_work,
)
from nvg.generator.batches import to_pixels
from pipelines.steps import check_evaluation
from tests.support.pictures import config as image_config
from tests.support.synthetic import CLASSES, write_images
from tests.support.toy_config import toy_config, toy_sampler

EACH = 5  # images per class
DATA = {"image_size": 8, "channels": 1, "num_classes": 3, "unit_images": 6}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    images = write_images(tmp_path_factory.mktemp("work") / "images", each=EACH, size=16)
    return toy_config(data={**DATA, "train": images}, evaluate={"samples_per_class": 3, "batch_size": 4, "seed": 7})


@pytest.fixture(scope="module")
def networks(config):
    sampler = toy_sampler(config, list(CLASSES))
    classifier = Classifier(ClassifierConfig(num_classes=3, channels=1, size=16)).eval()
    return Networks(sampler, FeatureNetwork(classifier), lambda one, other: (one - other).abs().mean((1, 2, 3)), 4)


def images(count):
    return np.random.default_rng(0).integers(0, 256, (count, 8, 8, 1), np.uint8)


def test_sample_j_has_class_j_mod_classes_and_the_jth_seed(config, networks):
    work = sample_work(config, 3)
    assert [some.labels for some in work] == [[0, 1, 2, 0], [1, 2, 0, 1], [2]]
    samples = [some.do(networks) for some in work]
    *_, fifth = networks.sampler.stages([1], seed=7 + 4)
    cut = cut_pixels(networks.sampler.tokenizer.decode(fifth.sequence)).numpy()
    assert np.array_equal(samples[1].images[:1], cut) and sum(some.size for some in work) == 9
    features, logits = networks.features(torch.from_numpy(samples[0].images))
    assert np.array_equal(samples[0].features, features) and np.array_equal(samples[0].logits, logits)


def test_what_is_measured_is_cut_down_and_what_is_shown_is_rounded(networks):
    """255 (x + 1) / 2 = 99.75, 0.25, 255 and, clamped, 0."""
    floats = (torch.tensor([99.75, 0.25, 255.0, -9.0]) * 2 / 255 - 1)[:, None, None, None]
    assert cut_pixels(floats).flatten().tolist() == [99, 0, 255, 0]
    assert to_pixels(floats).flatten().tolist() == [100, 0, 255, 0]
    (drawn,) = (DrawSamples([0, 1, 2], 7).do(networks).images.astype(int),)
    shown = networks.sampler.generate([0, 1, 2], seed=7)
    assert set((shown - drawn).flatten().tolist()) == {0, 1}  # some pixels differ, by one


def test_stages_are_previews_and_their_structure(config, networks):
    work = stage_work(config, 3, 2)
    assert work == DrawStages([0, 2], 7)
    stages = work.do(networks)
    assert stages.previews.shape == (config.tokenizer.last_stage + 1, 2, 8, 8, 1) and stages.codes.shape == (2, 16)
    assert np.array_equal(stages.previews[-1], networks.sampler.generate([0, 2], seed=7))


def test_features_count_the_images_that_are_given_their_label(networks):
    pixels = images(6)
    verdict = networks.features.module.predict(torch.from_numpy(pixels)).tolist()
    labels = [verdict[0], *((label + 1) % 3 for label in verdict[1:])]
    result = TakeFeatures("test", pixels, labels).do(networks)
    assert (result.reference, result.right) == (("test", False), 1) and result.features.shape == (6, 64)
    assert TakeFeatures("ref.npz", pixels).do(networks).right == 0  # an .npz file has no labels


def test_a_reconstruction_is_measured_in_batches_as_it_is_whole(networks):
    pixels, tokenizer = images(10), networks.sampler.tokenizer
    result = Reconstruct("test", pixels, [0] * 10).do(networks)
    sequence = tokenizer.encode(to_float(pixels))
    errors = mse_by_stages(to_float(pixels), sequence, tokenizer.decode)
    torch.testing.assert_close(torch.from_numpy(result.errors), errors)
    assert result.counts.shape == (3, 5, 16) and result.counts.sum() == sequence.flat_content().numel()
    assert result.features.shape == (10, 64) and result.lpips.shape == (10,)
    assert np.array_equal(result.images, pixels) and result.reconstructions.shape == pixels.shape


def test_a_split_is_read_into_work_on_its_images(config):
    split = SplitImages(config, "train")
    readers = {"train": split.source.reader()}
    work = [some for unit in split.work(TakeFeatures) for some in unit.read(readers, config)]
    assert split.count() == sum(some.size for some in work) == 3 * EACH and split.labelled
    assert all(isinstance(some, TakeFeatures) and some.name == "train" for some in work)
    assert sorted(label for some in work for label in some.labels) == sorted([0, 1, 2] * EACH)
    first = SplitImages(config, "train", most=7)
    again = [some for unit in first.work(Reconstruct) for some in unit.read(readers, config)]
    assert first.count() == sum(some.size for some in again) == 7 and isinstance(again[0], Reconstruct)
    assert np.array_equal(again[0].images, work[0].images) and first.published_moments() is None


def test_an_npz_file_is_work_with_its_own_moments(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (300, 4, 4, 3), np.uint8)
    np.savez(tmp_path / "reference.npz", pixels, mu=np.arange(3.0), sigma=np.eye(3))
    reference = npz(tmp_path / "reference.npz", 4, feature_width=3)
    assert [some.size for some in reference.work(TakeFeatures)] == [256, 44] and reference.count() == 300
    assert np.array_equal(np.concatenate([some.images for some in reference.work(TakeFeatures)]), pixels)
    assert reference.work(TakeFeatures)[0].labels is None and not reference.labelled
    assert torch.equal(reference.published_moments().mean, torch.arange(3.0).double())
    np.savez(tmp_path / "plain.npz", pixels)
    assert npz(tmp_path / "plain.npz", 4).published_moments() is None


def npz(path, size, *, channels=3, feature_width=2048):
    return NpzImages(str(path), image_config(image_size=size, channels=channels), feature_width)


def test_an_npz_file_of_moments_alone_is_a_reference_for_the_frechet_distance(tmp_path):
    """As pytorch-fid and its relatives write statistics; other arrays of such a file are not read."""
    np.savez(tmp_path / "stats.npz", mu=np.zeros(3), sigma=np.eye(3), features=np.zeros((9, 3)))
    images = npz(tmp_path / "stats.npz", 4, feature_width=3)
    assert images.work(TakeFeatures) == [] and images.count() == 0
    reference = images.without_images("net")
    assert reference.name == "mu and sigma of stats.npz" and reference.images == 0 and reference.right is None
    features = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    collected = SimpleNamespace(features=features, logits=features, labels=[0] * 50)
    figures = sample_figures(EvaluateConfig(bootstrap=2), collected, reference, knows_classes=False)
    assert set(figures) == {"samples", "frechet_distance", "inception_score"}
    assert figures["frechet_distance"].value < 1
    np.savez(tmp_path / "both.npz", np.zeros((2, 4, 4, 3), np.uint8), mu=np.zeros(3), sigma=np.eye(3))
    assert npz(tmp_path / "both.npz", 4, feature_width=3).without_images("net") is None


PIXELS = np.zeros((4, 8, 8, 3), np.uint8)
UNFIT = {
    "another size": ({"arr_0": PIXELS}, "images of 8 x 8 pixels, but data.image_size=4"),
    "another width": ({"arr_0": PIXELS[:, :4, :]}, "images of 8 x 4 pixels, but data.image_size=4"),
    "floats": ({"arr_0": PIXELS / 255}, "arr_0 is float64"),
    "signed": ({"arr_0": PIXELS.astype(np.int8)}, "arr_0 is int8"),
    "channels first": ({"arr_0": PIXELS.transpose(0, 3, 1, 2)}, "expected uint8 .N, H, W, 3."),
    "grey without channels": ({"arr_0": PIXELS[..., 0]}, "expected uint8 .N, H, W, 3."),
    "alpha": ({"arr_0": np.zeros((4, 4, 4, 4), np.uint8)}, "expected uint8 .N, H, W, 3."),
    "Fortran's order": ({"arr_0": np.asfortranarray(PIXELS)}, "in Fortran's order"),
    "objects": ({"arr_0": np.array([None, {}])}, "arr_0 is object"),
    "no image": ({"arr_0": PIXELS[:0]}, "0 images: at least two"),
    "one image": ({"arr_0": PIXELS[:1]}, "1 images: at least two"),
    "other names": ({"images": PIXELS}, "it holds images, neither arr_0 .images. nor mu and sigma"),
    "features alone": ({"features": np.zeros((4, 3))}, "it holds features, neither"),
    "mu alone": ({"mu": np.zeros(3)}, "it holds mu, neither"),
    "nothing": ({}, "it holds nothing, neither"),
    "another network's": ({"mu": np.zeros(64), "sigma": np.eye(64)}, "moments of 64 features, and .* has 2048"),
    "another network's beside images": (
        {"arr_0": np.zeros((4, 4, 4, 3), np.uint8), "mu": np.zeros(64), "sigma": np.eye(64)},
        "moments of 64 features, and .* has 2048",
    ),
    "integers": ({"mu": np.zeros(3, int), "sigma": np.eye(3)}, "mu is int64"),
    "shapes": ({"mu": np.zeros(3), "sigma": np.ones(3)}, "sigma float64 .3,."),
    "not finite": ({"mu": np.full(3, np.nan), "sigma": np.eye(3)}, "no mean and covariance"),
    "not symmetric": ({"mu": np.zeros(3), "sigma": np.triu(np.ones((3, 3)))}, "no mean and covariance"),
}


@pytest.mark.parametrize("what", UNFIT)
def test_an_npz_file_that_does_not_fit_is_refused_when_it_is_opened(what, tmp_path):
    arrays, message = UNFIT[what]
    np.savez(tmp_path / "r.npz", **arrays)
    with pytest.raises(DataError, match=f"evaluate.reference={tmp_path}/r.npz.*{message}"):
        npz(tmp_path / "r.npz", 4)


@pytest.mark.parametrize("what", ["another size", "floats", "another network's"])
def test_a_reference_that_does_not_fit_is_refused_before_anything_is_computed(what, config, tmp_path):
    arrays, message = UNFIT[what]
    np.savez(tmp_path / "r.npz", **arrays)
    settings = toy_config(
        data={**DATA, "train": config.data.train, "image_size": 4 if what != "another size" else 16},
        evaluate={"reference": f"{tmp_path}/r.npz", "inception_weights": f"{tmp_path}/w.safetensors"},
    )
    (tmp_path / "w.safetensors").write_bytes(b"")
    with pytest.raises(DataError, match=message.replace("data.image_size=4", "data.image_size=16")):
        check_evaluation(settings)


def test_grey_images_of_an_npz_file_have_one_channel_again(tmp_path):
    grey = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 1), np.uint8)
    np.savez(tmp_path / "grey.npz", np.repeat(grey, 3, axis=3))
    (work,) = npz(tmp_path / "grey.npz", 4, channels=1).work(TakeFeatures)
    assert np.array_equal(work.images, grey)
    np.savez(tmp_path / "colour.npz", np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), np.uint8))
    with pytest.raises(DataError, match=r"colour.npz: it holds images in colour, but data.channels=1"):
        npz(tmp_path / "colour.npz", 4, channels=1).work(TakeFeatures)


def test_two_files_of_one_name_and_size_are_two_references(tmp_path):
    """samples.npz of two runs: NumPy's plain files of as many images have one size."""
    for number, folder in enumerate(("a", "b")):
        (tmp_path / folder).mkdir()
        np.savez(tmp_path / folder / "samples.npz", np.full((4, 4, 4, 3), number, np.uint8))
    first, second = (npz(tmp_path / folder / "samples.npz", 4) for folder in ("a", "b"))
    assert first.features_file("out", "net") != second.features_file("out", "net")


def test_features_are_kept_by_images_their_preparation_and_the_network(config, tmp_path):
    np.savez(tmp_path / "a.npz", np.repeat(images(2), 3, axis=3))
    np.savez(tmp_path / "b.npz", np.repeat(images(3), 3, axis=3))
    limited = toy_config(data={**DATA, "train": config.data.train, "limit": 9})
    resized = [
        toy_config(data={**DATA, "train": config.data.train, "resize": "lanczos8", "crop_scale": scale})
        for scale in (1.0, 1.125)
    ]
    sets = [
        SplitImages(config, "train"),
        *(SplitImages(other, "train") for other in resized),
        SplitImages(limited, "train"),
        npz(tmp_path / "a.npz", 8),
        npz(tmp_path / "b.npz", 8),
    ]
    files = [some.features_file("out", "net") for some in sets]
    assert len({some.fingerprint for some in sets[:3]}) == 3  # evaluations of these are not compared either
    assert len(set(files)) == 6 and all(file.startswith("out/reference-") for file in files)
    assert SplitImages(config, "train").features_file("out", "net") == files[0]
    assert sets[0].features_file("out", "other") != files[0]


def test_work_and_results_travel_between_processes(networks):
    work = [DrawSamples([0], 1), DrawStages([1], 1), TakeFeatures("a", images(2)), Reconstruct("a", images(2), [0, 1])]
    for some in work:
        result = pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(some)).do(networks)))
        for name, value in vars(some.do(networks)).items():
            assert np.array_equal(getattr(result, name), value), name


@pytest.mark.parametrize(
    "names", [["square", "disc", "stripes"], ["Square", "disc", "stripes"], ["disc", "square"], ["a", "b", "c", "d"]]
)
def test_a_classifier_of_other_classes_judges_no_sampler(names, config, tmp_path):
    record = {"kind": "sampler", "format": storage.FORMAT, "tokenizer": "x", "class_names": names, "parts": []}
    (tmp_path / "metadata.json").write_text(json.dumps(record))
    evaluation = Evaluation(config, str(tmp_path), tmp_path)
    with pytest.raises(DataError, match="the sampler's classes .* are not those of data.train .disc, square, stripes."):
        evaluation.run()
