"""Between the loop and Ray: epochs one after the other, elastic shares, parts to train, storage of Ray's notes."""

import itertools
import json

import pytest

from nvg.artifacts.keys import distilled_identity, generators_identity, tokenizer_identity
from nvg.errors import CheckpointError, ConfigError
from nvg.training import jobs, ray_train
from nvg.training.loop import Place, train
from tests.support.toy import ToyTask
from tests.support.toy_config import toy_config


def numbered(per_epoch):
    """Epochs of which each batch is (epoch, number)."""

    def epoch(number, skip):
        return iter([(number, index) for index in range(skip, per_epoch)])

    return epoch


@pytest.mark.parametrize("step", range(8))
def test_any_step_finds_its_place_in_its_epoch(step):
    from_start = list(itertools.islice(jobs.endless(numbered(3), 3)(0), 20))
    assert from_start[:4] == [(0, 0), (0, 1), (0, 2), (1, 0)]
    assert list(itertools.islice(jobs.endless(numbered(3), 3)(step), 12)) == from_start[step : step + 12]


def test_an_epoch_has_the_same_steps_for_all_workers():
    assert list(itertools.islice(jobs.endless(numbered(5), 3)(2), 3)) == [(0, 2), (1, 0), (1, 1)]
    with pytest.raises(RuntimeError, match="epoch 0 gave 2 batches of 3"):
        list(itertools.islice(jobs.endless(numbered(2), 3)(0), 3))


def training(section, folder, stop_at=None, **changes):
    """A training of the toy under the settings and the identity of a configuration's section; returns its figures."""
    config = toy_config(**{section: {"batch_size": 8, "checkpoint_every": 4, **changes}})
    identity = {
        "tokenizer_train": lambda: tokenizer_identity(config),
        "train": lambda: generators_identity(config, "tokenizer"),
        "distill": lambda: distilled_identity(config, {"tokenizer": "tokenizer"}),
    }[section]()
    settings = jobs._loop_settings("toy", config, getattr(config, section), 12, identity)
    return train(ToyTask(dropout=0.0, stop_at=stop_at), settings, config, str(folder))


@pytest.mark.parametrize(
    ("section", "changes"),
    [
        *((section, {"accumulate": 2}) for section in ("tokenizer_train", "train", "distill")),
        *((section, {"checkpoint_every": 3}) for section in ("tokenizer_train", "train", "distill")),
        *((section, {"preview_every": 5}) for section in ("tokenizer_train", "train", "distill")),
        ("train", {"micro_batch": 3}),
        ("train", {"gradient_checkpointing": True}),
        ("train", {"compile": True}),
        ("train", {"parallel": "fsdp"}),
    ],
)
def test_a_stopped_training_goes_on_when_an_operational_setting_has_changed(tmp_path, section, changes):
    with pytest.raises(InterruptedError):
        training(section, tmp_path, stop_at=6)
    figures = training(section, tmp_path, **changes)
    assert (figures["resumed_from"], figures["steps_now"]) == (4, 8)


@pytest.mark.parametrize("changes", [{"lr": 1e-3}, {"precision": "float32"}, {"ema_decay": 0.5}])
@pytest.mark.parametrize("section", ["tokenizer_train", "train", "distill"])
def test_a_stopped_training_does_not_go_on_when_a_setting_has_changed_on_which_weights_depend(
    tmp_path, section, changes
):
    with pytest.raises(InterruptedError):
        training(section, tmp_path, stop_at=6)
    with pytest.raises(CheckpointError, match="of another configuration"):
        training(section, tmp_path, **changes)


def test_more_rows_a_batch_than_there_are_is_refused():
    with pytest.raises(ConfigError, match="train.batch_size=64 is more than the 10 images: lower it"):
        jobs._steps_per_epoch(10, 64, "images", "train")


@pytest.mark.parametrize("world", range(1, 9))
def test_workers_share_the_rows_of_a_batch_whatever_their_number(world):
    config = toy_config(train={"batch_size": 48, "accumulate": 3}, cluster={"num_workers": 8})
    shares = [jobs._rows(config, config.train, Place(rank=rank, world=world)) for rank in range(world)]
    assert [row for share in shares for row in range(48)[share]] == list(range(48))
    sizes = [share.stop - share.start for share in shares]
    assert min(sizes) > 0 and max(sizes) - min(sizes) <= 48 // 24 and all(size % 2 == 0 for size in sizes)


def test_parts_that_the_folder_holds_are_not_trained_again_and_the_configuration_stays_as_it_is(tmp_path):
    config = toy_config()
    (tmp_path / "half.json").write_text('{"format": 2, "parts": ["content"]}')
    assert jobs._with_missing_parts(config, str(tmp_path)).train.parts == ["structure"]
    assert config.train.parts == ["content", "structure"]


def test_a_new_sampler_has_the_licence_of_the_weights_that_it_takes_over(tmp_path):
    metadata = {"format": 2, "kind": "tokenizer", "fingerprint": "0", "class_names": []}
    for licence, entry in ((None, {}), ("of its owner", {"licence": "of its owner"})):
        (tmp_path / "metadata.json").write_text(json.dumps(metadata | {"licence": licence}))
        assert jobs.inherited_licence(str(tmp_path)) == entry


def test_notes_of_ray_go_where_the_artifact_is(tmp_path):
    assert ray_train._storage(str(tmp_path)) == (str(tmp_path), None)
    path, filesystem = ray_train._storage("memory://bucket/run/ray_train")
    assert path.strip("/") == "bucket/run/ray_train"
    filesystem.create_dir(path)
    with filesystem.open_output_stream(f"{path}/marker") as stream:
        stream.write(b"x")
    with filesystem.open_input_stream(f"{path}/marker") as stream:
        assert stream.read() == b"x"
