"""Structure that an evaluation gives: read, taken from images, chosen for each sample, and drawn with. Without Ray."""

import dataclasses
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from benchmarks import given_structure
from nvg import config as configuration
from nvg import tracking
from nvg.artifacts.keys import artifact_keys
from nvg.config import GivenStructure, SamplerConfig, read_given
from nvg.data.images import to_float
from nvg.errors import ConfigError, DataError, NotComparable, WeightsError
from nvg.evaluation import compare
from nvg.evaluation import evaluation as evaluations
from nvg.evaluation.beside import evaluate_beside
from nvg.evaluation.classifier import Classifier, ClassifierConfig, save_classifier
from nvg.evaluation.data_classifier import classifier_file
from nvg.evaluation.evaluation import Evaluation
from nvg.evaluation.features import FeatureNetwork, NetworkFile
from nvg.evaluation.given import HeldOutStructures, TakeDrawing, TakeStructure, flipped
from nvg.evaluation.metrics import Figure
from nvg.evaluation.reference import ReferenceMeter, load_reference
from nvg.evaluation.reference_images import SplitImages
from nvg.evaluation.work import DrawSamples, Networks, ReadUnit, Structures, TakeFeatures, cut_pixels, sample_work
from nvg.granularity import raster_codes, structure_codes, structure_map
from nvg.storage import FORMAT
from pipelines import evaluate as job
from pipelines.steps import check_evaluation
from tests.support.synthetic import CLASSES, write_images
from tests.support.toy_config import toy_config, toy_sampler

EACH = 6  # held-out images per class
DATA = {"image_size": 8, "channels": 1, "num_classes": 3, "unit_images": 6}
LAST = 4  # K of 4 x 4 positions
EVALUATE = {"samples_per_class": 4, "batch_size": 5, "seed": 7, "bootstrap": 2, "reconstructions": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("given")


@pytest.fixture(scope="module")
def config(folder):
    train = write_images(folder / "train", each=EACH, size=16)
    test = write_images(folder / "test", each=EACH, size=16, seed=1)
    return toy_config(data={**DATA, "train": train, "test": test}, evaluate=EVALUATE, output=str(folder / "out"))


@pytest.fixture(scope="module")
def dinov2_folder(folder):
    torch.manual_seed(0)
    size = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3}
    transformers.Dinov2Model(transformers.Dinov2Config(**size, image_size=56)).save_pretrained(folder / "dinov2")
    return str(folder / "dinov2")


@pytest.fixture(scope="module")
def networks(config):
    sampler = toy_sampler(config, sorted(CLASSES))
    return Networks(sampler, FeatureNetwork(Classifier(ClassifierConfig(3, channels=1, size=16)).eval()), None, 4)


def random_codes(count, seed=0):
    return structure_codes(torch.randn(count, 16, 3, generator=torch.Generator().manual_seed(seed)))


def structures(kind, *, raster=True, names="abc", labels=None):
    """The structures of 30 images of three classes that come in two results."""
    codes = random_codes(30).to(torch.int16).numpy()
    labels = [number % 3 for number in range(30)] if labels is None else labels
    found = [Structures(codes[:7], labels[:7]), Structures(codes[7:], labels[7:])]
    return HeldOutStructures(read_given(kind, LAST), found, names, raster=raster), codes, np.array(labels)


# ---- the setting ----


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("own:4", GivenStructure("own", 4)),
        ("other:1", GivenStructure("other", 1)),
        ("drawn", GivenStructure("drawn", 1)),
        ("noisy:0.05", GivenStructure("noisy", LAST, 0.05)),
    ],
)
def test_a_kind_is_read(text, meaning):
    assert read_given(text, LAST) == meaning


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("others:3", "evaluate.given=others:3 is none of own:STAGE, other:STAGE, drawn, noisy:SHARE"),
        ("other", "evaluate.given=other is none of"),
        ("own:two", "evaluate.given=own:two is none of"),
        ("own:-1", "evaluate.given=own:-1 is none of"),
        ("drawn:1", "evaluate.given=drawn:1 is none of"),
        ("noisy:much", "evaluate.given=noisy:much is none of"),
        ("", "evaluate.given= is none of"),
        ("other:0", "evaluate.given=other:0: stage 0 is none of 1 ... 4"),
        ("own:5", "evaluate.given=own:5: stage 5 is none of 1 ... 4"),
        ("noisy:0", "evaluate.given=noisy:0: the share 0 must be above 0, at most 0.5"),
        ("noisy:0.51", "evaluate.given=noisy:0.51: the share 0.51 must be above 0, at most 0.5"),
        ("noisy:nan", "evaluate.given=noisy:nan: the share nan must be"),
    ],
)
def test_a_kind_that_cannot_be_given_is_refused_in_one_line(text, message):
    with pytest.raises(ConfigError) as error:
        toy_config(data={**DATA, "test": "unused"}, evaluate={"given": text})
    assert f"configuration: {message}" in str(error.value) and "\n" not in str(error.value)


def test_it_needs_held_out_images_and_another_class():
    with pytest.raises(ConfigError, match="evaluate.given=own:1: the structure is that of held-out images: set data.t"):
        toy_config(data=DATA, evaluate={"given": "own:1"})
    with pytest.raises(ConfigError, match="evaluate.given=other:1: data.num_classes=1, so there is no other class"):
        toy_config(data={**DATA, "num_classes": 1, "test": "unused"}, evaluate={"given": "other:1"})


def test_it_is_in_the_key_of_the_evaluation_alone(config):
    other = dataclasses.replace(config, evaluate=dataclasses.replace(config.evaluate, given="drawn"))
    before, after = (artifact_keys(one, "train", "test") for one in (config, other))
    assert {step for step in before if before[step] != after[step]} == {"evaluation"}


def test_the_option_is_the_setting(config, tmp_path):
    """A wrong value of the option is refused as that of the setting, and goes over the setting."""
    file = tmp_path / "toy.yaml"
    file.write_text(configuration.to_yaml(config))
    for more in ([], ["evaluate.given=drawn"]):
        with pytest.raises(SystemExit, match=r"error: .*toy.yaml: evaluate.given=own:9: stage 9 is none of 1 ... 4"):
            job.main(["--config", str(file), "--given", "own:9", *more])


# ---- the structure of real images ----


def test_structure_is_as_the_tokenizer_encodes_it(networks):
    pixels = np.random.default_rng(0).integers(0, 256, (10, 8, 8, 1), np.uint8)
    result = pickle.loads(pickle.dumps(TakeStructure("test", pixels, list(range(10))))).do(networks)
    assert np.array_equal(result.codes, networks.sampler.tokenizer.encode(to_float(pixels)).codes)
    assert result.labels == list(range(10))


def test_a_drawing_is_white_where_the_image_is_bright_and_needs_two_sides(networks):
    left = np.zeros((8, 8, 1), np.uint8)
    left[:, :4] = 200
    thin = np.zeros((8, 8, 1), np.uint8)
    thin[0, 0] = 255  # a quarter of one position
    result = TakeDrawing("test", np.stack([left, np.full_like(left, 90), thin, 255 - left]), [2, 0, 1, 1]).do(networks)
    assert result.labels == [2, 1]  # an even image and one with too thin a shape make no drawing
    for codes in torch.from_numpy(result.codes).long():
        assert structure_map(codes[None], 1).view(4, 4).tolist() == [[0, 0, 1, 1]] * 4
    none = TakeDrawing("test", np.zeros((2, 8, 8, 1), np.uint8), [0, 1]).do(networks)
    assert none.codes.shape == (0, 16) and none.labels == []


# ---- what each sample is given ----


@pytest.mark.parametrize("kind", ["own:3", "other:3", "drawn"])
def test_a_sample_is_given_the_structure_of_an_image_of_the_kind(kind):
    held_out, codes, labels = structures(kind)
    classes = [number % 3 for number in range(300)]
    given = held_out.of(classes, seed=11)
    assert given.structure_stages == (1 if kind == "drawn" else 3) and given.content == []
    chosen = [set(labels[(codes == row.numpy()).all(axis=1)].tolist()) for row in given.codes]
    assert all(len(some) == 1 for some in chosen)  # every structure is one of the images'
    same = [{label} == some for label, some in zip(classes, chosen, strict=True)]
    assert not any(same) if kind == "other:3" else all(same)
    used = {tuple(row) for row in given.codes.tolist()}
    assert len(used) == 30  # each image is chosen some time


@pytest.mark.parametrize("kind", ["own:3", "other:3", "drawn", "noisy:0.2"])
def test_what_a_sample_is_given_follows_from_its_class_and_seed(kind):
    held_out, *_ = structures(kind)
    whole = held_out.of([0, 1, 2, 0, 1, 2], seed=5).codes
    assert torch.equal(held_out.of([0, 1], seed=8).codes, whole[3:5])
    assert not torch.equal(held_out.of([0, 1, 2, 0, 1, 2], seed=50).codes, whole)


@pytest.mark.parametrize(
    ("kind", "labels", "message"),
    [
        ("own:1", [0, 1] * 15, "class 'c': data.test has no image of that class whose structure can be given"),
        ("drawn", [0, 2] * 15, "class 'b': data.test has no image of that class that makes a drawing whose structure"),
        ("noisy:0.1", [1, 2] * 15, "class 'a': data.test has no image of that class"),
        ("other:1", [1] * 30, "class 'b': data.test has no image of another class"),
    ],
)
def test_a_class_that_nothing_can_be_given_is_named(kind, labels, message):
    with pytest.raises(DataError, match=message):
        structures(kind, labels=labels)


# ---- noise ----


@pytest.mark.parametrize("share", [0.05, 0.125, 0.2, 0.5])
def test_flipped_positions_change_their_cluster_at_every_stage_and_clusters_stay_equal(share):
    codes, rng = random_codes(400, seed=3), np.random.default_rng(0)
    noisy = torch.from_numpy(np.stack([flipped(row.numpy(), share, rng) for row in codes]))
    assert torch.equal(noisy.sort(dim=1).values, torch.arange(16).expand(400, 16))  # every cluster keeps its size
    moved = structure_map(noisy, 1) != structure_map(codes, 1)
    for stage in range(2, LAST + 1):
        assert torch.equal(structure_map(noisy, stage) != structure_map(codes, stage), moved)
    counts = moved.sum(dim=1)
    assert (counts % 2 == 0).all() and counts.max() - counts.min() <= 2
    assert float(moved.float().mean()) == pytest.approx(share, abs=0.01)  # in the mean: 5% of 16 is no pair


@pytest.mark.parametrize("raster", [True, False])
def test_noisy_clusters_have_the_names_that_the_generators_know(raster):
    held_out, codes, _ = structures("noisy:0.5", raster=raster)
    given = held_out.of([0] * 50, seed=0).codes
    assert torch.equal(given.sort(dim=1).values, torch.arange(16).expand(50, 16))
    assert torch.equal(given, raster_codes(given, LAST)) == raster
    assert not any((codes == row.numpy()).all(axis=1).any() for row in given)


def test_raster_names_change_no_cluster():
    codes = random_codes(20)
    permuted = codes ^ 0b1010  # other names of the same clusters
    assert torch.equal(raster_codes(permuted, LAST), codes) and not torch.equal(permuted, codes)


# ---- drawing with it ----


def test_samples_have_the_structure_that_they_are_given_and_no_other_seed(config, networks):
    held_out, *_ = structures("other:2", names=sorted(CLASSES))
    work = sample_work(config, 3, held_out.of)
    assert [some.labels for some in work] == [some.labels for some in sample_work(config, 3)]
    expected = held_out.of([number % 3 for number in range(12)], config.evaluate.seed).codes
    assert torch.equal(torch.cat([some.given.codes for some in work]), expected)
    result = pickle.loads(pickle.dumps(work[1])).do(networks)
    *_, last = networks.sampler.stages(work[1].labels, seed=7 + 5, given=work[1].given)
    assert torch.equal(structure_map(last.sequence_codes, 2), structure_map(work[1].given.codes, 2))
    assert np.array_equal(result.images, cut_pixels(networks.sampler.tokenizer.decode(last.sequence)).numpy())
    assert not np.array_equal(result.images, DrawSamples(work[1].labels, 7 + 5).do(networks).images)


# ---- whole evaluations, their work done in this process ----


@pytest.fixture
def evaluate(config, networks, folder, monkeypatch):
    """A function of settings of `evaluate` that gives (Evaluated, Evaluation)."""

    def measure(config, work, *, readers, dinov2, **_):
        held = dataclasses.replace(networks, dinov2=None if dinov2 is None else dinov2.load())
        for some in work:
            for piece in some.read(readers, config) if isinstance(some, ReadUnit) else [some]:
                yield piece.do(held)

    def run(**settings):
        changed = dataclasses.replace(config, evaluate=dataclasses.replace(config.evaluate, **settings))
        evaluation = Evaluation(changed, str(folder), folder)
        return evaluation.run(), evaluation

    monkeypatch.setattr(evaluations, "measure", measure)
    record = {"kind": "sampler", "format": FORMAT, "tokenizer": "x", "class_names": sorted(CLASSES), "parts": []}
    (folder / "metadata.json").write_text(json.dumps(record))
    file = Path(classifier_file(config, SplitImages(config, "train").source))
    file.parent.mkdir(exist_ok=True)
    save_classifier(networks.features.module, file)
    return run


@pytest.mark.slow
def test_a_snapshot_of_a_training_is_drawn_with_its_own_settings(evaluate, config, folder, monkeypatch):
    """A distilled sampler takes other steps than the configuration says of its teacher."""
    snapshot, asked = folder / "snapshot", []
    snapshot.mkdir()
    its_own = dataclasses.replace(config, sampler=SamplerConfig(flow_steps=3))
    (snapshot / "config.yaml").write_text(configuration.to_yaml(its_own))
    run = tracking.start(config, "train")
    record = json.loads((folder / "metadata.json").read_text()) | {"run_id": run.id, "step": 40}
    (snapshot / "metadata.json").write_text(json.dumps(record))
    work_here = evaluations.measure

    def measure(config, work, **named):
        asked.append(config.sampler.flow_steps)
        return work_here(config, work, **named)

    monkeypatch.setattr(evaluations, "measure", measure)
    curves = evaluate_beside(config, str(snapshot), samples=12)
    assert asked == [3] and config.sampler.flow_steps != 3 and not snapshot.exists()
    assert curves["evaluation/frechet_distance"] > 0
    (point,) = run.client.get_metric_history(run.id, "evaluation/frechet_distance")
    assert (point.step, point.value) == (40, curves["evaluation/frechet_distance"])
    run.end()


def test_an_evaluation_gives_structure_and_names_it(evaluate, folder, capsys):
    plain, _ = evaluate()
    pixels = np.load(folder / "samples.npz")["arr_0"]
    given, evaluation = evaluate(given="other:3")
    assert "other:3: structure of 18 of 18 held-out images" in capsys.readouterr().out
    assert (plain.protocol["given"], given.protocol["given"]) == (None, "other:3")
    assert {name for name, value in given.figures.items() if isinstance(value, Figure)} >= {
        "accuracy_on_samples",
        "frechet_distance",
        "recall",
    }
    changed = np.load(folder / "samples.npz")["arr_0"]
    assert changed.shape == pixels.shape and not np.array_equal(changed, pixels)
    result = job.content(given, evaluation.config, "runs/sampler", seconds=1.0)
    assert job.summary(result, "out").startswith("evaluation with other:3 given: Fréchet distance ")
    with pytest.raises(NotComparable, match="given is None in the one and 'other:3' in the other"):
        compare.check({"a": job.content(plain, evaluation.config, "x", seconds=1.0), "b": result})


@pytest.mark.parametrize("kind", ["own:2", "drawn", "noisy:0.2"])
def test_every_kind_is_evaluated(evaluate, kind):
    given, _ = evaluate(given=kind)
    assert given.protocol["given"] == kind and given.figures["samples"] == 12


def test_a_second_distance_is_taken_on_dinov2(evaluate, config, dinov2_folder):
    result, evaluation = evaluate(dinov2_weights=dinov2_folder)
    assert result.protocol["dinov2_network"].startswith("dinov2 ") and result.protocol["network"].startswith("class")
    figure = result.figures["frechet_distance_dinov2"]
    assert 0 <= figure.low <= figure.value <= figure.high and figure.value != result.figures["frechet_distance"].value
    network = NetworkFile("dinov2", dinov2_folder)
    split = SplitImages(config, "test")
    reference = load_reference(split.features_file(config.output, network.name))
    assert reference.network == network.name and reference.features.shape == (3 * EACH, 48)
    pixels = [piece.images for unit in split.work(TakeFeatures) for piece in unit.read({"test": split.source}, config)]
    features, logits = network.load()(torch.from_numpy(np.concatenate(pixels)))
    torch.testing.assert_close(reference.features, features)
    assert logits.shape == (3 * EACH, 0)
    again, _ = evaluate(dinov2_weights=dinov2_folder)  # the features of real images are read
    assert again.figures["frechet_distance_dinov2"] == figure
    line = job.summary(job.content(result, evaluation.config, "x", seconds=1.0), "out")
    assert f", on DINOv2 {figure.value:.3g} [" in line


def test_wrong_dinov2_weights_are_named_before_anything_is_drawn(evaluate, config, folder, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(WeightsError, match=f"evaluate.dinov2_weights={tmp_path}: the folder has no model.safetensors"):
        evaluate(dinov2_weights=str(tmp_path))
    changed = dataclasses.replace(config, evaluate=dataclasses.replace(config.evaluate, dinov2_weights="/nowhere"))
    with pytest.raises(ConfigError, match="evaluate.dinov2_weights=/nowhere: no such folder with a config.json"):
        check_evaluation(changed)
    np.savez(tmp_path / "moments.npz", mu=np.zeros(64), sigma=np.eye(64))
    settings = {"dinov2_weights": str(tmp_path), "reference": f"{tmp_path}/moments.npz"}
    with pytest.raises(DataError, match="moments.npz holds mu and sigma alone: evaluate.dinov2_weights needs images"):
        check_evaluation(dataclasses.replace(config, evaluate=dataclasses.replace(config.evaluate, **settings)))


def test_structure_of_other_classes_is_not_given(config, tmp_path):
    """Nor where Inception, which asks for no classes, judges the samples."""
    record = {"kind": "sampler", "format": FORMAT, "tokenizer": "x", "class_names": ["square", "disc"], "parts": []}
    (tmp_path / "metadata.json").write_text(json.dumps(record))
    with pytest.raises(DataError, match=r"the sampler's classes .* are not those of data.test .*structure is given"):
        Evaluation(config, str(tmp_path), tmp_path)._structures("own:1")


def test_the_table_has_a_row_for_every_kind(config, networks, dinov2_folder):
    split = SplitImages(config, "test")
    meter = ReferenceMeter(0)
    for unit in split.work(TakeFeatures):
        for work in unit.read({"test": split.source}, config):
            result = work.do(networks)
            meter.add(torch.from_numpy(result.features), result.right)
    reference = meter.reference("test", split.fingerprint, "classifier", labelled=True)
    network = NetworkFile("dinov2", dinov2_folder)
    both = dataclasses.replace(networks, dinov2=network.load())
    table = given_structure.Table(config, both, reference, network.name)
    rows = given_structure.kinds(LAST)
    shares = ["noisy:0.05", "noisy:0.1", "noisy:0.2"]
    assert rows == [None, "other:1", "other:2", "other:3", "drawn", "own:4", *shares]
    lines = [given_structure.line(kind, table.figures(kind), list(given_structure.COLUMNS)) for kind in rows]
    assert [line.split(" | ")[0] for line in lines] == [f"| {kind or 'nothing'}" for kind in rows]
    assert all(line.count("[") == 5 for line in lines) and len({line.split(" | ", 1)[1] for line in lines}) > 5
    with pytest.raises(DataError, match="data.test=.* are not the 18 test images of the sampler's reference"):
        given_structure.Table(config, both, dataclasses.replace(reference, fingerprint="other"), network.name)
