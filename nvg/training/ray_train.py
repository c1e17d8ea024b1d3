"""The Ray edge of training: one loop on one worker becomes data-parallel on many, and survives the loss of some.

Ray Train starts the workers, joins them in a process group and starts all of them again when one is lost. A restart
goes on from this project's own checkpoints (nvg/training/checkpoint.py) in the artifact's folder: so a killed driver,
started again, goes on as well.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from nvg import storage, tracking
from nvg.cluster import is_own_ray, keep_services_here, set_threads, warn_of_too_few_cpus
from nvg.config import ClusterConfig, Config
from nvg.errors import NvgError
from nvg.training.jobs import tidy
from nvg.training.loop import Place
from nvg.training.parallel import parallelize
from nvg.training.verdict import Told, Verdict, settled

Body = Callable[..., Any]
Evaluate = Callable[[Config, str], dict[str, float]]
POINTER = "sampler.json"  # what Ray Train keeps of a sampler to be evaluated: where it is
LEAVING_GRACE = 30.0  # seconds for workers to finish a checkpoint after a node's announced end


def fit(body: Body, config: Config, folder: str, *, evaluate: Evaluate | None = None, **arguments: Any) -> Any:
    """Run `body(config, place, wrap, folder=folder, **arguments)` on every worker; returns the first one's result.

    config.cluster says how many workers there are and how many failures are survived. folder: the artifact's, path or
    URL; Ray Train keeps its own notes below it while it runs. evaluate: called in a Ray task with the configuration and
    the folder of each sampler that the body has for evaluation, beside the training; `fit` waits for the last of them.
    Raises what the body raises: an error that would come again, of whichever worker, is not tried again; others are
    raised when cluster.max_failures restarts did not help.
    """
    # Workers stay in the job's working directory, so that relative paths mean the same; and they print a line once.
    for name in ("RAY_CHDIR_TO_TRIAL_DIR", "RAY_TRAIN_ENABLE_PRINT_PATCH"):
        os.environ.setdefault(name, "0")
    import ray
    import ray.train.torch

    # Nobody takes the only node away: no need of an actor that looks out for it.
    single_node = sum(node["Alive"] for node in ray.nodes()) == 1
    os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0" if single_node else "1"
    warn_of_too_few_cpus(ray.cluster_resources().get("CPU", 0.0), config.cluster)
    if config.cluster.use_gpu:
        end_hanging_collectives()
    if not is_own_ray():
        keep_services_here()
    tidy(folder)  # after a driver that was killed
    notes = storage.join(folder, "ray_train")
    # One worker tells itself: an actor is a process more, seconds of a core.
    verdict: Told = _RemoteVerdict() if config.cluster.num_workers > 1 else Verdict()
    work = _Work(
        body=body,
        config=config,
        arguments={"folder": folder, **arguments},
        tracking_uri=tracking.tracking_uri(config),
        single_node=single_node,
        verdict=verdict,
    )
    library: Any = ray.train  # its annotations are those of the old version
    trainer = library.torch.TorchTrainer(
        _worker,
        train_loop_config={"work": work},
        scaling_config=_scaling(library, config.cluster),
        run_config=_run_config(library, config.cluster, notes),
        validation_config=_validation(library, config, evaluate) if evaluate is not None else None,
    )
    with storage.space_for(notes), _interruptible():
        answer = _answer(trainer, verdict)
    tidy(folder)
    if "error" in answer:
        raise answer["error"]
    return answer["value"]


def _answer(trainer: Any, verdict: Told) -> dict[str, Any]:
    """What the first worker returned, or the error of any worker that would come again. Raises the others of Ray Train
    when its retries did not help."""
    try:
        return trainer.fit().return_value
    except Exception:
        error, _ = verdict.get()
        if error is None:
            raise
        return {"error": error}


@dataclass(frozen=True)
class _Work:
    """What the driver sends to every worker."""

    body: Body
    config: Config
    arguments: dict[str, Any]
    tracking_uri: str  # the driver's answer: every worker uses it
    single_node: bool
    verdict: Told


def _worker(message: dict[str, _Work]) -> dict[str, Any]:
    """Run the body on one worker; returns what `settled` does."""
    import ray.train
    from ray.train.torch import get_device

    work = message["work"]
    os.environ[tracking.ENVIRONMENT] = work.tracking_uri
    # Notices at every epoch and every checkpoint; the last one sets its level by itself.
    for name in ("ray.data", "ray.train", "ray.train.v2._internal.execution.context"):
        logging.getLogger(name).setLevel(logging.WARNING)
    set_threads(work.config.cluster)
    library: Any = ray.train
    context = library.get_context()

    place = Place(
        rank=context.get_world_rank(),
        world=context.get_world_size(),
        device=get_device(),
        report=ray.train.report,
        evaluate=_report_sampler,
        leaving=lambda: not work.single_node and library.get_preemption_info() is not None,
    )
    body = partial(work.body, work.config, place, parallelize, **work.arguments)
    return settled(body, work.verdict, rank=place.rank, world=place.world)


class _RemoteVerdict:
    """A Verdict in an actor on the driver's node, which all workers ask."""

    def __init__(self) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._actor: Any = ray.remote(num_cpus=0, scheduling_strategy=here)(Verdict).remote()

    def add(self, rank: int, error: NvgError) -> int:
        import ray

        return ray.get(self._actor.add.remote(rank, error))

    def get(self) -> tuple[NvgError | None, int]:
        import ray

        return ray.get(self._actor.get.remote())


def end_hanging_collectives() -> None:
    """Have Ray Train watch the collectives of NCCL: one in which nothing moves for ten minutes fails its workers, which
    start again from the newest checkpoint, where they would wait for ever. Variables that are set already stay."""
    os.environ.setdefault("RAY_TRAIN_ENABLE_NCCL_HANG_DETECTOR", "1")
    os.environ.setdefault("RAY_TRAIN_NCCL_RAS_ACTION", "fail")


def _report_sampler(metrics: dict[str, float], sampler: str | None) -> None:
    """Report; on the first worker with a sampler's folder, which Ray Train then has evaluated."""
    import ray.train

    library: Any = ray.train
    if sampler is None:
        library.report(metrics)
        return
    with tempfile.TemporaryDirectory() as pointer:
        storage.write_json(f"{pointer}/{POINTER}", {"folder": sampler})
        library.report(metrics, checkpoint=library.Checkpoint.from_directory(pointer), validation=True)


def _validation(library: Any, config: Config, evaluate: Evaluate) -> Any:
    """Ray Train's ValidationConfig: samplers are evaluated by a task that only waits for others."""

    def validate(checkpoint: Any) -> dict[str, float]:
        with checkpoint.as_directory() as pointer:
            return evaluate(config, storage.read_json(f"{pointer}/{POINTER}")["folder"])

    return library.ValidationConfig(fn=validate, ray_remote_kwargs={"num_cpus": 0})


def _scaling(library: Any, cluster: ClusterConfig) -> Any:
    """Ray Train's ScalingConfig: how many workers, and the resources of each."""
    workers: int | tuple[int, int] = cluster.num_workers
    if cluster.min_workers is not None:
        workers = (cluster.min_workers, cluster.num_workers)
    gpus = {"GPU": 1} if cluster.use_gpu else {}
    return library.ScalingConfig(
        num_workers=workers,
        elastic_resize_monitor_interval_s=cluster.resize_interval,
        use_gpu=cluster.use_gpu,
        resources_per_worker={"CPU": cluster.cpus_per_worker, **gpus, **cluster.worker_resources},
    )


def _run_config(library: Any, cluster: ClusterConfig, notes: str) -> Any:
    """Ray Train's RunConfig: where it keeps its notes, and how many failures it survives."""
    path, filesystem = _storage(notes)
    return library.RunConfig(
        name="run",
        storage_path=path,
        storage_filesystem=filesystem,
        # The grace lets a worker finish the checkpoint at a notice. relax_collectives_on_preemption stays off: with it
        # a worker that leaves may never hear the notice, and where the weights are split, its part would be missing.
        failure_config=library.FailureConfig(max_failures=cluster.max_failures, preemption_grace_s=LEAVING_GRACE),
        logging_config=library.LoggingConfig(log_level="WARNING"),
    )


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Give SIGINT back after Ray Train, which takes it for itself and keeps it.

    Otherwise Ctrl-C would end a later job with code 0, or not at all.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _storage(url: str) -> tuple[str, Any]:
    """A path and a filesystem for Ray Train, by the same fsspec settings that the rest of the project uses."""
    if not storage.is_url(url):
        return os.path.abspath(url), None
    import fsspec
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    filesystem, path = fsspec.core.url_to_fs(url)
    return re.sub(r"/+$", "", path), PyFileSystem(FSSpecHandler(filesystem))
