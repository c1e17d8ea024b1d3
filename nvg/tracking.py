"""The one place that knows MLflow: where runs go, what a run records, and how a run goes on after a restart.

A database file in the output folder needs no server: without one, runs go to `sqlite:///<output>/mlflow.db` and their
files to `<output>/mlartifacts`. `tracking.uri` wins over MLFLOW_TRACKING_URI, which wins over that. MLflow is imported
on first use (it takes about 3 s), so that only jobs that track pay for it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import subprocess
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nvg import storage
from nvg.config import Config
from nvg.errors import ConfigError
from nvg.extras import require

if TYPE_CHECKING:
    from PIL import Image

ENVIRONMENT = "MLFLOW_TRACKING_URI"
SQLITE = "sqlite:///"
PARENT = "mlflow.parentRunId"  # the tag by which MLflow shows runs below others
RUN_FILE = "mlflow_run.json"  # in the artifact's folder
_VALUE_LENGTH = 6000  # characters of a parameter that MLflow stores
_MODEL = "sampler"  # the folder of a registered sampler among the run's files
_BATCH = 100  # parameters that MLflow takes at once


def tracking_uri(config: Config) -> str:
    """Where runs go: tracking.uri, MLFLOW_TRACKING_URI, or a database in the output folder. A database's path is
    absolute: processes on other nodes have other working directories.

    Raises ConfigError when the output is a URL and nothing names a server: a database file needs a disk.
    """
    named = config.tracking.uri or os.environ.get(ENVIRONMENT)
    if named:
        return absolute_uri(named)
    if not storage.is_local(config.output):
        raise ConfigError(
            f"output={config.output} is a URL, where MLflow's database file cannot live: set tracking.uri or "
            f"{ENVIRONMENT} to a tracking server (infra/ has one) or to sqlite:////absolute/path/mlflow.db"
        )
    return f"{SQLITE}{storage.local_path(config.output).resolve() / 'mlflow.db'}"


def absolute_uri(uri: str) -> str:
    """A store's address as every process understands it: a database's path from this one's working directory."""
    file = uri.removeprefix(SQLITE)
    return uri if file in (uri, "", ":memory:") else f"{SQLITE}{os.path.abspath(file)}"


def ignored_server(config: Config) -> str | None:
    """The line to print where MLFLOW_TRACKING_URI names another place than tracking.uri, which wins; else None."""
    named, used = os.environ.get(ENVIRONMENT), config.tracking.uri
    if not named or not used or absolute_uri(named) == absolute_uri(used):
        return None
    return f"tracking: runs go to tracking.uri={config.tracking.uri}, not to {ENVIRONMENT}={named}, which is also set"


def start(config: Config, job_name: str, run_id: str | None = None, folder: str | None = None) -> Run:
    """Start a run called `job_name`, or go on with `run_id` (with a new run where the store does not know it any more).

    folder: the artifact's (path or URL). A mark of the run is kept there from before the run exists, so that a job that
    was killed at any moment goes on in its run.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # a training job has no business to call home
    from mlflow.exceptions import MlflowException

    for name in ("mlflow.store.db.utils", "mlflow.system_metrics"):
        logging.getLogger(name).setLevel(logging.ERROR)  # notices that break progress bars
    uri = tracking_uri(config)
    client = _Client(uri)
    if run_id is not None:
        try:
            return _resume(client, run_id, uri)
        except MlflowException:
            pass  # the store was emptied or exchanged meanwhile: that must not stop a training
    experiment = _experiment(client, config, uri)
    mark = _mark(folder, job_name) if folder is not None else uuid.uuid4().hex
    existing = client.search_runs([experiment], f"tags.mark = '{mark}'")
    if existing:
        run = _resume(client, existing[0].info.run_id, uri)
        with contextlib.suppress(MlflowException):  # a setting that changes no weight may have another value now
            run.log_params(config)
    else:
        created = client.create_run(experiment, run_name=job_name, tags={"mark": mark})
        run = Run(client, created.info.run_id, uri, resumed=False)
        run.log_params(config)
    tags = {"git_commit": git_commit(), "job": job_name}
    run.set_tags(tags if config.tracking.parent is None else tags | {PARENT: config.tracking.parent})
    return run


def _resume(client: _Client, run_id: str, uri: str) -> Run:
    """The run of an earlier job, running again. Raises MlflowException where the store does not know it."""
    client.update_run(run_id, status="RUNNING")
    return Run(client, run_id, uri, resumed=True)


def _mark(folder: str, job_name: str) -> str:
    """The mark by which the run of an artifact's job is found again. It is made on the first call."""
    path = storage.join(folder, RUN_FILE)
    marks = storage.read_json(path) if storage.exists(path) else {}
    if job_name not in marks:
        marks[job_name] = uuid.uuid4().hex
        storage.write_json(path, marks)
    return marks[job_name]


def _experiment(client: _Client, config: Config, uri: str) -> str:
    """The id of the configuration's experiment, which is made where it is missing. Raises ConfigError."""
    from mlflow.exceptions import MlflowException

    name = config.tracking.experiment or config.name
    experiment = client.get_experiment_by_name(name)
    if experiment is not None:
        if experiment.lifecycle_stage != "active":
            raise ConfigError(f"the MLflow experiment {name!r} was deleted: restore it or set tracking.experiment")
        return experiment.experiment_id
    # A server has its own store of files; a database file gets a folder of its own.
    location = config.tracking.artifacts
    if location is None and uri.startswith(SQLITE):
        location = str(Path(uri.removeprefix(SQLITE)).parent / "mlartifacts")
    try:
        return client.create_experiment(name, artifact_location=location)
    except MlflowException:
        experiment = client.get_experiment_by_name(name)  # another job was faster
        if experiment is None:
            raise
        return experiment.experiment_id


class _Client:
    """MLflow's client; a database on a full disk says so by its name (storage.DiskFull)."""

    def __init__(self, uri: str) -> None:
        from mlflow import MlflowClient

        self._uri = uri
        with storage.space_for(uri):
            if uri.startswith(SQLITE):
                _make_database(Path(uri.removeprefix(SQLITE)))
            self._client = MlflowClient(uri, registry_uri=uri)

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            with storage.space_for(self._uri):
                return getattr(self._client, name)(*arguments, **named)

        return call


def _make_database(path: Path) -> None:
    """Make the tables in a file that gets its name when they are complete: MLflow cannot complete half of them."""
    from mlflow import MlflowClient

    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        return
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        MlflowClient(f"{SQLITE}{temporary}", registry_uri=f"{SQLITE}{temporary}")
        with contextlib.suppress(FileExistsError):  # another job was faster: its file stays
            os.link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def add_points(config: Config, run_id: str, metrics: Mapping[str, float], step: int) -> None:
    """Add a point to curves of a run that another process keeps open. A step that a curve has is left as it is."""
    from mlflow.entities import Metric

    client = _Client(tracking_uri(config))
    now = int(time.time() * 1000)
    new = [
        Metric(key, float(value), now, step)
        for key, value in metrics.items()
        if step not in {point.step for point in client.get_metric_history(run_id, key)}
    ]
    if new:
        client.log_batch(run_id, metrics=new)


class Run:
    """One MLflow run. Every method writes at once, so that a killed job loses nothing."""

    def __init__(self, client: _Client, run_id: str, uri: str, *, resumed: bool) -> None:
        self.client = client
        self.id = run_id
        self.uri = uri
        self._logged: dict[str, int] = {}  # the last step of each curve
        if resumed:  # steps since the last checkpoint are computed again: they are not logged again
            for metric in client.get_run(run_id).data._metric_objs:
                self._logged[metric.key] = metric.step
        self._monitor = _system_metrics(run_id, uri)

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Add a point to each curve. A step that a curve has already is left as it is."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        points = []
        for key, value in metrics.items():
            if step > self._logged.get(key, -1):
                points.append(Metric(key, float(value), now, step))
                self._logged[key] = step
        if points:
            self.client.log_batch(self.id, metrics=points)

    def log_params(self, config: Config) -> None:
        """Record the resolved configuration, one parameter per key: `train.lr`."""
        from mlflow.entities import Param

        flat = flatten(dataclasses.asdict(config))
        params = [Param(key, str(value)[:_VALUE_LENGTH]) for key, value in flat.items()]
        for first in range(0, len(params), _BATCH):
            self.client.log_batch(self.id, params=params[first : first + _BATCH])

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Record names of things: git commit, data fingerprint, artifact key."""
        from mlflow.entities import RunTag

        self.client.log_batch(self.id, tags=[RunTag(key, str(value)) for key, value in tags.items()])

    def log_artifact(self, path: str | Path, folder: str | None = None) -> None:
        """Copy a local file into the run, into `folder` when given."""
        self.client.log_artifact(self.id, str(path), folder)

    def log_image(self, image: Image.Image, name: str) -> None:
        """Store a picture as `name`, for example previews/00001000.png."""
        with tempfile.TemporaryDirectory() as temporary:
            path = Path(temporary) / Path(name).name
            image.save(path)
            folder = str(Path(name).parent)
            self.log_artifact(path, None if folder == "." else folder)

    def register(
        self,
        name: str,
        folder: str | Path,
        metadata: Mapping[str, Any],
        mlmodel: str,
        alias: str = "champion",
    ) -> int:
        """Copy a sampler's weights and settings (local folder) and metadata.json into the run, and register them as a
        version of model `name`. Returns the version, which stays the same when this run registers again.

        mlmodel: the file by which MLflow's own tools load the model (nvg/pyfunc.py). The alias moves to the version, so
        that `models:/NAME@champion` is the newest.
        """
        from mlflow.exceptions import MlflowException

        for path in sorted(Path(folder).iterdir()):
            if path.suffix in (".safetensors", ".yaml"):
                self.log_artifact(path, _MODEL)
        self.client.log_text(self.id, json.dumps(metadata, indent=2), f"{_MODEL}/{storage.LAST_FILE}")
        self.client.log_text(self.id, mlmodel, f"{_MODEL}/MLmodel")
        try:
            self.client.create_registered_model(name)
        except MlflowException:
            self.client.get_registered_model(name)  # it exists already, or this says what is wrong
        source = f"{self.client.get_run(self.id).info.artifact_uri}/{_MODEL}"
        versions = self.client.search_model_versions(f"run_id = '{self.id}'")
        existing = [version for version in versions if version.name == name]
        version = existing[0] if existing else self.client.create_model_version(name, source=source, run_id=self.id)
        self.client.set_registered_model_alias(name, alias, version.version)
        return int(version.version)

    def end(self, status: str = "FINISHED") -> None:
        """Close the run: FINISHED, FAILED or KILLED."""
        if self._monitor is not None:
            self._monitor.finish()
            self._monitor = None
        self.client.set_terminated(self.id, status=status)


def registered_folder(model: str) -> str:
    """The files behind `models:/NAME@alias` or `models:/NAME/version`, in a local folder.

    Raises ConfigError when the name, alias or version is not registered, or no store is named.
    """
    version = _registered(model)
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    try:
        return download_artifacts(artifact_uri=version.source, tracking_uri=os.environ[ENVIRONMENT])
    except MlflowException as error:
        raise ConfigError(f"{model} has no files at {version.source}: {error}") from None


def download(model: str, names: Sequence[str], folder: str) -> None:
    """Copy some of the files behind `models:/NAME/version` into a local folder.

    Raises ConfigError as `registered_folder` does.
    """
    source = _registered(model).source
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    for name in names:
        try:
            download_artifacts(artifact_uri=f"{source}/{name}", dst_path=folder, tracking_uri=os.environ[ENVIRONMENT])
        except (MlflowException, OSError) as error:
            raise ConfigError(f"{model} has no {name} at {source}: {error}") from None


def registered_version(model: str) -> str:
    """The `models:/NAME/version` that an alias names now. Raises ConfigError as `registered_folder` does."""
    version = _registered(model)
    return f"models:/{version.name}/{version.version}"


def _registered(model: str) -> Any:
    """MLflow's record of a registered version. Raises ConfigError."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    uri = os.environ.get(ENVIRONMENT)
    name = model.removeprefix("models:/")
    if not uri:
        raise ConfigError(f"{model} is looked up in MLflow: set {ENVIRONMENT} to the store that holds it")
    if "@" not in name and "/" not in name:
        raise ConfigError(f"{model} names no version: write models:/{name}@champion or models:/{name}/1")
    require(model, "mlflow")
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    client = MlflowClient(uri, registry_uri=uri)
    try:
        if "@" in name:
            return client.get_model_version_by_alias(*name.split("@", 1))
        return client.get_model_version(*name.split("/", 1))
    except MlflowException as error:
        raise ConfigError(f"{model} is not registered at {uri}: {error}") from None


def flatten(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys joined by dots: {"a": {"b": 1}} -> {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def git_commit() -> str:
    """The commit of this code, "+changes" when files differ from it; NVG_COMMIT, or "unknown", outside a repository."""

    def git(*arguments: str) -> str:
        folder = Path(__file__).resolve().parent
        return subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        # Only a repository that tracks this file: an installed package may lie inside another project's folder.
        git("ls-files", "--error-unmatch", Path(__file__).name)
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return os.environ.get("NVG_COMMIT", "unknown")


def _system_metrics(run_id: str, uri: str) -> Any:
    """MLflow's thread that records CPU, memory and GPU of a run, started."""
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    monitor = SystemMetricsMonitor(run_id, resume_logging=True, tracking_uri=uri)
    monitor.start()
    return monitor
