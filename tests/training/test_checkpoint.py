"""Checkpoints and the folders that training leaves: round trips, damage, half-trained samplers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import nvg
from nvg.artifacts import models
from nvg.autoencoder import Autoencoder
from nvg.config import SamplerConfig
from nvg.errors import CheckpointError
from nvg.generator import ContentGenerator, StructureGenerator
from nvg.training import checkpoint
from nvg.training.loop import train
from tests.support.toy import ToyTask, toy_settings
from tests.support.toy_config import toy_config

CLASSES = ["cat", "dog"]


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
    with pytest.raises(CheckpointError, match="has format 99, this version of nvg reads 1"):
        restore(ToyTask(), url)


def test_a_shape_that_does_not_fit_is_named(trained):
    _, url = trained
    task = ToyTask()
    task.modules["second"] = torch.nn.Linear(5, 1)
    with pytest.raises(CheckpointError, match=r"weight has shape \(1, 4\), the model \(1, 5\)"):
        restore(task, url)


# ---- tokenizer and sampler folders ----


@pytest.fixture
def parts():
    torch.manual_seed(0)
    config = toy_config()
    return config, Autoencoder(config.tokenizer), ContentGenerator(config.content), StructureGenerator(config.structure)


def export(folder, parts, names=("content", "structure")):
    config, autoencoder, content, structure = parts
    both = {"content": content.state_dict(), "structure": structure.state_dict()}
    return models.export_sampler(
        str(folder),
        tokenizer=autoencoder.state_dict(),
        parts={name: both[name] for name in names},
        config=config,
        class_names=CLASSES,
        metadata={},
    )


def test_a_tokenizer_comes_back_as_it_was(tmp_path, parts):
    config, autoencoder, *_ = parts
    mark = models.save_tokenizer(
        str(tmp_path), autoencoder.state_dict(), config, class_names=CLASSES, metadata={"images": 3}
    )
    loaded = models.load_tokenizer(str(tmp_path))
    assert not loaded.training
    assert mark == models.fingerprint(loaded.state_dict()) == models.tokenizer_fingerprint(str(tmp_path))
    images = torch.rand(2, 1, 8, 8) * 2 - 1
    autoencoder.eval()
    assert torch.equal(loaded.decode(loaded.encode(images)), autoencoder.decode(autoencoder.encode(images)))


def test_fingerprints_see_names_shapes_and_single_bits():
    state = {"a": torch.zeros(4), "b": torch.ones(2)}
    marks = [
        models.fingerprint(other)
        for other in (
            state,
            {"b": torch.ones(2), "a": torch.zeros(4)},
            {"a": torch.zeros(2, 2), "b": torch.ones(2)},
            {"a": torch.zeros(4), "c": torch.ones(2)},
            {"a": torch.tensor([0.0, 0.0, 0.0, -0.0]), "b": torch.ones(2)},
        )
    ]
    assert marks[0] == marks[1] and len(set(marks)) == 4


def test_altered_tokenizer_weights_are_noticed(tmp_path, parts):
    config, autoencoder, *_ = parts
    models.save_tokenizer(str(tmp_path), autoencoder.state_dict(), config, class_names=CLASSES, metadata={})
    path = tmp_path / "tokenizer.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-2] + bytes([data[-2] ^ 1]) + data[-1:])
    with pytest.raises(CheckpointError, match="damaged: its fingerprint differs"):
        models.load_tokenizer(str(tmp_path))
    path.write_bytes(data[:100])
    with pytest.raises(CheckpointError, match="tokenizer.safetensors is damaged"):
        models.load_tokenizer(str(tmp_path))


def test_a_sampler_comes_back_and_draws(tmp_path, parts):
    assert export(tmp_path, parts) is True
    sampler = nvg.load(str(tmp_path), SamplerConfig(flow_steps=2))
    images = sampler.generate(["dog", 0], seed=1)
    assert images.shape == (2, 8, 8, 1) and images.dtype.name == "uint8"
    assert sampler.settings.flow_steps == 2 and sampler.class_names == CLASSES


@pytest.mark.parametrize(("have", "missing"), [("content", "structure"), ("structure", "content")])
def test_half_a_sampler_says_what_is_missing_and_the_other_half_completes_it(tmp_path, parts, have, missing):
    assert export(tmp_path, parts, (have,)) is False
    assert not (tmp_path / "metadata.json").exists()  # so that no job takes it for finished
    with pytest.raises(CheckpointError, match=rf"the {missing} generator is missing.*train.parts=\[{missing}\]"):
        nvg.load(str(tmp_path))
    assert export(tmp_path, parts, (missing,)) is True
    assert not (tmp_path / models.HALF).exists()
    assert nvg.load(str(tmp_path)).class_names == CLASSES


def test_a_folder_of_another_kind_is_refused(tmp_path, parts, trained):
    _, url = trained
    with pytest.raises(CheckpointError, match="holds a training, expected a sampler"):
        models.load_sampler(url)
    with pytest.raises(CheckpointError, match="no metadata.json"):
        nvg.load(str(tmp_path))


def test_an_unknown_name_lists_what_ships():
    with pytest.raises(ValueError, match="no sampler 'fashoin'.*models:/NAME@champion"):
        nvg.load("fashoin")


def test_a_sampler_is_read_from_a_url(tmp_path, parts):
    export(tmp_path, parts)
    assert nvg.load(f"file://{tmp_path}").class_names == CLASSES


def test_importing_the_package_imports_neither_torch_nor_ray():
    code = "import sys, nvg; assert not {'torch', 'ray', 'mlflow', 'omegaconf'} & set(sys.modules); nvg.granularity"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(nvg.__file__).parents[1])
