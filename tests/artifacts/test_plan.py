"""Planning: where artifacts are, found without reading or downloading weights."""

from pathlib import Path

import pytest

from nvg import config as configuration
from nvg import pyfunc, tracking
from nvg.artifacts.models import ASSETS, read_metadata
from nvg.config import Config
from nvg.errors import ConfigError
from pipelines.steps import fetched, plan
from tests.support.synthetic import write_images

SMOKE = Path(__file__).parents[2] / "conf" / "smoke.yaml"


@pytest.fixture
def settings(tmp_path: Path) -> list[str]:
    images = write_images(tmp_path / "images", each=2)
    return [f"output={tmp_path}/runs", f"data.train={images}", "distill.steps=4", "sampler.structure_guidance=1.5"]


@pytest.fixture
def registry(settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files of a registered sampler in their store; MLFLOW_TRACKING_URI names the registry."""
    run = tracking.start(configuration.load(SMOKE, settings), "register")
    name = "fashion-mnist"
    run.register("bags", ASSETS / name, read_metadata(str(ASSETS / name)), pyfunc.describe((32, 32, 1)))
    run.end()
    monkeypatch.setenv(tracking.ENVIRONMENT, f"sqlite:///{tmp_path}/runs/mlflow.db")
    (weights,) = (tmp_path / "runs" / "mlartifacts").rglob("content.safetensors")
    return weights.parent


def with_teacher(settings: list[str], name: str) -> Config:
    return configuration.load(SMOKE, [*settings, f"distill.teacher={name}"])


@pytest.mark.slow
def test_a_plan_reads_two_small_files_of_a_registered_teacher(registry: Path, settings: list[str]) -> None:
    hidden = registry.with_name("hidden")
    hidden.mkdir()
    for path in registry.glob("*.safetensors"):
        path.rename(hidden / path.name)  # who reads weights fails
    (registry / "MLmodel").unlink()
    artifacts = plan(with_teacher(settings, "models:/bags@champion"))
    teacher = artifacts["generators"]
    assert teacher.folder == artifacts["tokenizer"].folder == "models:/bags/1"
    assert teacher.given and teacher.complete
    assert not artifacts["distilled"].complete
    shipped = plan(with_teacher(settings, "fashion-mnist"))
    assert {step: artifact.key for step, artifact in artifacts.items()} == {
        step: artifact.key for step, artifact in shipped.items()
    }
    assert all(fetched(artifact) == artifact for artifact in (shipped["generators"], artifacts["tokens"]))

    for path in hidden.iterdir():
        path.rename(registry / path.name)
    folder = Path(fetched(teacher).folder)
    assert (folder / "content.safetensors").read_bytes() == (
        ASSETS / "fashion-mnist" / "content.safetensors"
    ).read_bytes()
    assert fetched(artifacts["tokenizer"]).folder == str(folder)  # downloaded once


@pytest.mark.slow
def test_a_registered_teacher_that_lacks_a_file_is_named(registry: Path, settings: list[str]) -> None:
    (registry / "metadata.json").unlink()
    with pytest.raises(ConfigError, match="models:/bags/1 has no metadata.json at "):
        plan(with_teacher(settings, "models:/bags@champion"))
    with pytest.raises(ConfigError, match="models:/shoes@champion is not registered"):
        plan(with_teacher(settings, "models:/shoes@champion"))


def test_a_distilled_teacher_is_refused(settings: list[str]) -> None:
    with pytest.raises(ConfigError, match="distill.teacher=fashion-mnist-fast is itself distilled"):
        plan(with_teacher(settings, "fashion-mnist-fast"))
