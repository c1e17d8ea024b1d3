"""Today's code reads what an earlier version wrote: tests/artifacts/old, see its README."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import nvg
from nvg import config as configuration
from nvg.artifacts import keys, models
from nvg.data.tokens import read_metadata, read_part, to_arrays
from nvg.errors import CheckpointError
from nvg.training.checkpoint import checked_metadata, restore_checkpoint
from nvg.training.generator_task import GeneratorTask
from nvg.training.tokenizer_task import TokenizerTask
from nvg.verify import check_folder

OLD = Path(__file__).parent / "old"
SAMPLER, TOKENS = str(OLD / "sampler"), str(OLD / "tokens")
CPU = torch.device("cpu")
# What the version that wrote them calls these artifacts, operational settings that it hashed being at their defaults.
KEYS = {
    "tokenizer": "9f5cd333b2bb",
    "tokens": "df7902add0e8",
    "generators": "5fb3bc905de5",
    "evaluation": "3323bfa1b868",
}


def assert_drawn(images: np.ndarray) -> None:
    """The images of that version, but for rounding on another CPU."""
    expected = np.load(OLD / "images.npy")
    assert images.shape == expected.shape and images.dtype == np.uint8
    difference = np.abs(images.astype(int) - expected)
    assert difference.max() <= 1 and (difference > 0).mean() <= 0.02


def test_its_sampler_draws_its_images() -> None:
    assert_drawn(nvg.load(SAMPLER).generate([0, 1, 2, 0], seed=0))


def test_mlflow_loads_its_registered_sampler() -> None:
    import mlflow.pyfunc

    rows = [{"label": "1", "seed": 3}, {"label": "disc", "seed": 4}]
    images = mlflow.pyfunc.load_model(SAMPLER).predict(rows)
    assert np.array_equal(images, nvg.load(SAMPLER).generate(["square", "disc"], seed=[3, 4]))


@pytest.fixture
def tokenizer(tmp_path: Path) -> str:
    """Its tokenizer's folder, whole: the weights are those of the sampler."""
    folder = shutil.copytree(OLD / "tokenizer", tmp_path / "tokenizer")
    shutil.copy(OLD / "sampler" / "tokenizer.safetensors", folder)
    return str(folder)


def test_its_tokenizer_is_loaded(tokenizer: str) -> None:
    mark = models.tokenizer_fingerprint(tokenizer)
    assert models.fingerprint(models.load_tokenizer(tokenizer).state_dict()) == mark
    assert mark == models.tokenizer_fingerprint(SAMPLER) == read_metadata(TOKENS)["fingerprint"]


def test_its_tokens_are_read() -> None:
    about = read_metadata(TOKENS)
    files = sorted(Path(TOKENS).glob("part-*.parquet"))
    assert len(files) == about["parts"] == 6
    rows = [to_arrays(read_part(str(file))) for file in files]
    assert sum(len(row["labels"]) for row in rows) == about["rows"] == 96
    assert {int(label) for row in rows for label in row["labels"]} == {0, 1, 2}
    assert rows[0]["content"].shape[1] == 31 and rows[0]["codes"].shape[1] == 16


@pytest.mark.parametrize("folder", [SAMPLER, TOKENS, str(OLD / "checkpoint-content" / "step-00000008")])
def test_every_check_of_it_passes(folder: str) -> None:
    failed = [check for check in check_folder(folder) if not check.ok]
    assert not failed


def test_its_keys_are_found() -> None:
    config = configuration.load(OLD / "sampler" / "config.yaml")
    images = json.loads((OLD / "tokenizer" / "metadata.json").read_text())["data_fingerprint"]
    assert keys.artifact_keys(config, images, None) == KEYS


def test_a_training_of_content_goes_on_from_its_checkpoint() -> None:
    url = str(OLD / "checkpoint-content" / "step-00000008")
    config = configuration.load(f"{url}/config.yaml", ["train.accumulate=2", "train.gradient_checkpointing=true"])
    task = GeneratorTask(
        config, models.load_tokenizer(SAMPLER), lambda step: iter(()), 16, class_names=["a", "b", "c"], device=CPU
    )
    identity = keys.generators_identity(config, models.tokenizer_fingerprint(SAMPLER))
    state = restored(url, task, identity)
    assert state["step"] == 8 and task.averages["content"].updates == 8
    with pytest.raises(CheckpointError, match="of another configuration"):
        restored(url, task, keys.generators_identity(config, "another tokenizer"))


def test_a_training_of_the_tokenizer_goes_on_from_its_checkpoint() -> None:
    url = str(OLD / "checkpoint-tokenizer" / "step-00000008")
    settings = ["tokenizer_train.accumulate=2", "tokenizer_train.checkpoint_every=3"]
    config = configuration.load(f"{url}/config.yaml", settings)
    task = TokenizerTask(config, lambda step: iter(()), 16, 6, device=CPU)
    assert restored(url, task, keys.tokenizer_identity(config))["step"] == 8
    other = configuration.load(f"{url}/config.yaml", ["tokenizer_train.lr=1e-5"])
    with pytest.raises(CheckpointError, match="of another configuration"):
        restored(url, task, keys.tokenizer_identity(other))


def restored(url, task, identity):
    assert checked_metadata(url)["total_steps"] == 16
    return restore_checkpoint(
        url, modules=task.modules, averages=task.averages, optimizers=task.optimizers, identity=identity
    )
