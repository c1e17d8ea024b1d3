"""The pieces of an evaluation's work, done without Ray."""

import pickle

import numpy as np
import pytest
import torch

from nvg.autoencoder import Autoencoder
from nvg.config import SamplerConfig
from nvg.data.images import to_float
from nvg.evaluation.classifier import Classifier, ClassifierConfig
from nvg.evaluation.features import FeatureNetwork
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
from nvg.generator import ContentGenerator, Sampler, StructureGenerator
from nvg.generator.sampler import to_pixels
from tests.support.synthetic import CLASSES, write_images
from tests.support.toy_config import toy_config

EACH = 5  # images per class
DATA = {"image_size": 8, "channels": 1, "num_classes": 3, "unit_images": 6}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    images = write_images(tmp_path_factory.mktemp("work") / "images", each=EACH, size=16)
    return toy_config(data={**DATA, "train": images}, evaluate={"samples_per_class": 3, "batch_size": 4, "seed": 7})


@pytest.fixture(scope="module")
def networks(config):
    torch.manual_seed(0)
    models = (
        Autoencoder(config.tokenizer).eval(),
        ContentGenerator(config.content).eval(),
        StructureGenerator(config.structure).eval(),
    )
    sampler = Sampler(*models, SamplerConfig(flow_steps=1), list(CLASSES))
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
    assert (result.reference, result.right) == ("test", 1) and result.features.shape == (6, 64)
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
    work = [some for unit in split.work() for some in unit.read(readers, config)]
    assert split.count() == sum(some.size for some in work) == 3 * EACH and split.labelled
    assert all(isinstance(some, TakeFeatures) and some.name == "train" for some in work)
    assert sorted(label for some in work for label in some.labels) == sorted([0, 1, 2] * EACH)
    first = SplitImages(config, "train", most=7)
    again = [some for unit in first.reconstruction_work() for some in unit.read(readers, config)]
    assert first.count() == sum(some.size for some in again) == 7 and isinstance(again[0], Reconstruct)
    assert np.array_equal(again[0].images, work[0].images) and first.published_moments() is None


def test_an_npz_file_is_work_with_its_own_moments(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (300, 4, 4, 3), np.uint8)
    np.savez(tmp_path / "reference.npz", pixels, mu=np.arange(3.0), sigma=np.eye(3))
    reference = NpzImages(f"{tmp_path}/reference.npz")
    assert [some.size for some in reference.work()] == [256, 44] and reference.count() == 300
    assert np.array_equal(np.concatenate([some.images for some in reference.work()]), pixels)
    assert reference.work()[0].labels is None and not reference.labelled
    assert torch.equal(reference.published_moments().mean, torch.arange(3.0).double())
    np.savez(tmp_path / "plain.npz", pixels)
    assert NpzImages(f"{tmp_path}/plain.npz").published_moments() is None


def test_features_are_kept_by_images_their_preparation_and_the_network(config, tmp_path):
    np.savez(tmp_path / "a.npz", images(2))
    np.savez(tmp_path / "b.npz", images(3))
    limited = toy_config(data={**DATA, "train": config.data.train, "limit": 9})
    resized = [
        toy_config(data={**DATA, "train": config.data.train, "resize": "lanczos8", "crop_scale": scale})
        for scale in (1.0, 1.125)
    ]
    sets = [
        SplitImages(config, "train"),
        *(SplitImages(other, "train") for other in resized),
        SplitImages(limited, "train"),
        NpzImages(f"{tmp_path}/a.npz"),
        NpzImages(f"{tmp_path}/b.npz"),
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
