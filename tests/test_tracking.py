"""MLflow: where runs go, one run after a restart, what is recorded."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from nvg import tracking
from nvg.errors import ConfigError
from tests.support.toy_config import toy_config


@pytest.fixture(autouse=True)
def no_server(monkeypatch):
    monkeypatch.delenv(tracking.ENVIRONMENT, raising=False)


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    return tmp_path_factory.mktemp("tracked")  # shared: a fresh database takes seconds


@pytest.fixture
def config(output):
    config = toy_config()
    config.output = str(output)
    return config


def tracked(config):
    """The runs of the configuration's experiment."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking.tracking_uri(config))
    experiment = client.get_experiment_by_name(config.name)
    return {run.info.run_id for run in client.search_runs([experiment.experiment_id])} if experiment else set()


def test_runs_go_to_a_database_beside_the_output(config, output):
    assert tracking.tracking_uri(config) == f"sqlite:///{output}/mlflow.db"


def test_a_relative_output_gives_an_absolute_path(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config.output = "runs"
    assert tracking.tracking_uri(config) == f"sqlite:///{tmp_path}/runs/mlflow.db"


def test_an_output_may_be_a_file_url(config, tmp_path):
    config.output = f"file://{tmp_path}/runs"
    assert tracking.tracking_uri(config) == f"sqlite:///{tmp_path}/runs/mlflow.db"


def test_the_configuration_wins_over_the_environment_and_a_line_says_so(config, monkeypatch):
    assert tracking.ignored_server(config) is None
    monkeypatch.setenv(tracking.ENVIRONMENT, "http://two:5000")
    assert tracking.tracking_uri(config) == "http://two:5000" and tracking.ignored_server(config) is None
    config.tracking.uri = "http://one:5000"
    assert tracking.tracking_uri(config) == "http://one:5000"
    assert tracking.ignored_server(config) == (
        "tracking: runs go to tracking.uri=http://one:5000, not to MLFLOW_TRACKING_URI=http://two:5000, which is also "
        "set"
    )
    monkeypatch.setenv(tracking.ENVIRONMENT, "http://one:5000")
    assert tracking.ignored_server(config) is None


@pytest.mark.parametrize(
    ("uri", "whole"),
    [
        ("sqlite:///mlflow.db", "sqlite:///{here}/mlflow.db"),
        ("sqlite:////data/mlflow.db", "sqlite:////data/mlflow.db"),
        ("http://mlflow:5000", "http://mlflow:5000"),
        ("sqlite:///:memory:", "sqlite:///:memory:"),
    ],
)
@pytest.mark.parametrize("by_environment", [False, True])
def test_a_database_is_where_the_driver_means(config, tmp_path, monkeypatch, uri, whole, by_environment):
    monkeypatch.chdir(tmp_path)
    if by_environment:
        monkeypatch.setenv(tracking.ENVIRONMENT, uri)
    else:
        config.tracking.uri = uri
    assert tracking.tracking_uri(config) == whole.format(here=tmp_path)


def test_an_output_url_needs_a_server(config):
    config.output = "s3://bucket/runs"
    with pytest.raises(ConfigError, match="output=s3://bucket/runs is a URL.*tracking.uri or MLFLOW_TRACKING_URI"):
        tracking.tracking_uri(config)


def test_a_run_records_parameters_curves_tags_and_pictures(config, output):
    run = tracking.start(config, "job")
    run.log_metrics({"loss": 2.0}, 1)
    run.log_metrics({"loss": 1.0, "lr": 0.1}, 2)
    run.set_tags({"artifact": "key-1"})
    run.log_image(Image.new("L", (4, 4)), "previews/00000002-samples.png")
    run.end()
    stored = run.client.get_run(run.id)
    assert stored.info.status == "FINISHED" and stored.info.run_name == "job"
    assert stored.data.params["train.lr"] == "0.0001" and stored.data.params["tokenizer.widths"] == "[16, 16]"
    assert re.fullmatch(r"[0-9a-f]{40}(\+changes)?|unknown", stored.data.tags["git_commit"])
    assert stored.data.tags["artifact"] == "key-1"
    assert [point.value for point in run.client.get_metric_history(run.id, "loss")] == [2.0, 1.0]
    (picture,) = output.glob("mlartifacts/*/artifacts/previews/*.png")
    assert Image.open(picture).size == (4, 4)


def test_a_restart_goes_on_with_the_run_and_repeats_no_point(config):
    first = tracking.start(config, "job")
    for step in (1, 2, 3):
        first.log_metrics({"loss": 1.0 / step}, step)
    again = tracking.start(config, "job", first.id)  # from a checkpoint at step 1
    for step in (2, 3, 4):
        again.log_metrics({"loss": 1.0 / step}, step)
    again.end()
    first._monitor.finish()
    assert again.id == first.id
    history = again.client.get_metric_history(again.id, "loss")
    assert [(point.step, point.value) for point in history] == [(step, 1.0 / step) for step in (1, 2, 3, 4)]
    assert again.client.get_run(again.id).info.status == "FINISHED"


def test_a_run_that_the_store_does_not_know_begins_anew(config):
    run = tracking.start(config, "job", "0" * 32)
    run.end()
    assert run.id != "0" * 32


def test_a_registered_sampler_is_found_by_its_alias(config, output, tmp_path, monkeypatch):
    (tmp_path / "content.safetensors").write_bytes(b"weights")
    (tmp_path / "mlflow_run.json").write_text("{}")  # no part of a sampler
    for version in (1, 2):
        run = tracking.start(config, "job")
        about = {"parts": [version]}
        assert [run.register("bags", tmp_path, about, "flavors: {}") for _ in range(2)] == [version, version]
        run.end()
    with pytest.raises(ConfigError, match="set MLFLOW_TRACKING_URI"):
        tracking.registered_folder("models:/bags@champion")
    monkeypatch.setenv(tracking.ENVIRONMENT, f"sqlite:///{output}/mlflow.db")
    folder = Path(tracking.registered_folder("models:/bags@champion"))
    assert {path.name for path in folder.iterdir()} == {"content.safetensors", "metadata.json", "MLmodel"}
    assert json.loads((folder / "metadata.json").read_text()) == {"parts": [2]}
    assert run.client.get_model_version_by_alias("bags", "champion").version in (2, "2")
    with pytest.raises(ConfigError, match="models:/shoes@champion is not registered"):
        tracking.registered_folder("models:/shoes@champion")
    with pytest.raises(ConfigError, match="names no version"):
        tracking.registered_folder("models:/bags")


def test_nested_keys_are_joined_by_dots():
    assert tracking.flatten({"a": {"b": {"c": 1}}, "d": [2]}) == {"a.b.c": 1, "d": [2]}


def test_a_job_that_was_killed_at_any_moment_goes_on_in_its_run(config, tmp_path):
    folder = f"{tmp_path}/generators"
    before = tracked(config)
    first = tracking.start(config, "job", folder=folder)
    first.log_metrics({"loss": 1.0}, 1)
    killed = first.client  # no end: its process is gone
    again = tracking.start(config, "job", folder=folder)
    assert again.id == first.id
    again.log_metrics({"loss": 9.0}, 1)  # it is there already
    again.end()
    assert [point.value for point in killed.get_metric_history(first.id, "loss")] == [1.0]
    config.cluster.num_workers = 7  # of no weight: the run goes on
    tracking.start(config, "job", folder=folder).end()
    assert killed.get_run(first.id).info.status == "FINISHED"
    other = tracking.start(config, "other job", folder=folder)
    other.end()
    assert tracked(config) == before | {first.id, other.id}
