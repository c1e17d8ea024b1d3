"""Checkpoints of a training: round trips, damage, those that do not fit."""

import json
import os
from pathlib import Path

import pytest
import torch

import nvg
from nvg.errors import CheckpointError
from nvg.training import checkpoint
from nvg.training.loop import train
from tests.support.toy import ToyTask, toy_settings
from tests.support.toy_config import toy_config


@pytest.fixture
def trained(tmp_path):
    task = ToyTask()
    train(task, toy_settings(total_steps=8), toy_config(), str(tmp_path))
    return task, checkpoint.latest_checkpoint(str(tmp_path))


def restore(task, url, identity="toy"):
    return checkpoint.restore_checkpoint(
        url, modules=task.modules, averages=task.averages, optimizers=task.optimizers, identity=identity
    )


def test_a_checkpoint_gives_back_weights_averages_and_moments(trained):
    task, url = trained
    fresh = ToyTask()
    metadata = restore(fresh, url)
    assert metadata["step"] == 8 and metadata["seed"] == 5
    assert all(torch.equal(value, fresh.state()[name]) for name, value in task.state().items())
    assert fresh.averages["first"].updates == 8


def test_a_checkpoint_holds_no_pickle_and_its_configuration(trained):
    _, url = trained
    assert sorted(os.listdir(url)) == [
        "config.yaml",
        "ema.safetensors",
        "metadata.json",
        "model.safetensors",
        "optimizer.safetensors",
    ]
    assert nvg.config.load(f"{url}/config.yaml") == toy_config()


@pytest.mark.parametrize("name", ["model.safetensors", "ema.safetensors", "optimizer.safetensors"])
@pytest.mark.parametrize("damage", ["cut", "altered", "gone"])
def test_damage_is_named_with_what_to_do(trained, name, damage):
    _, url = trained
    path = Path(url) / name
    data = path.read_bytes()
    if damage == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "altered":
        path.write_bytes(data[:-2] + bytes([data[-2] ^ 1]) + data[-1:])
    else:
        path.unlink()
    with pytest.raises(CheckpointError, match=f"{name}.*remove {url} to go on from the checkpoint before it"):
        restore(ToyTask(), url)


def test_an_unfinished_checkpoint_is_never_taken(trained):
    _, url = trained
    folder = Path(url).parent
    (folder / "step-00000099").mkdir()
    (folder / "step-00000099" / "model.safetensors").write_bytes(b"half")
    assert checkpoint.latest_checkpoint(str(folder)) == url


def test_no_checkpoint_is_none(tmp_path):
    assert checkpoint.latest_checkpoint(str(tmp_path / "nothing")) is None


def test_a_checkpoint_of_another_configuration_or_format_is_refused(trained):
    _, url = trained
    with pytest.raises(CheckpointError, match="of another configuration .toy, now other"):
        restore(ToyTask(), url, identity="other")
    metadata = json.loads((Path(url) / "metadata.json").read_text())
    (Path(url) / "metadata.json").write_text(json.dumps({**metadata, "format": 99}))
    with pytest.raises(CheckpointError, match="has format 99, this version of nvg reads 2"):
        restore(ToyTask(), url)


def test_a_shape_that_does_not_fit_is_named(trained):
    _, url = trained
    task = ToyTask()
    task.modules["second"] = torch.nn.Linear(5, 1)
    with pytest.raises(CheckpointError, match=r"weight has shape \(1, 4\), the model \(1, 5\)"):
        restore(task, url)
