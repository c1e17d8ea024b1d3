"""The Ray edge of training: one loop on one worker becomes data-parallel on many, and survives the loss of some.

Ray Train starts the workers, joins them in a process group and starts all of them again when one is lost. What a
restart goes on from are this project's own checkpoints (nvg/training/checkpoint.py), in the artifact's folder: so a
killed driver, started again, goes on as well.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from nvg import storage, tracking
from nvg.cluster import OWN_RAY
from nvg.config import Config
from nvg.errors import NvgError
from nvg.training.jobs import tidy
from nvg.training.loop import Bar, Place, terminal_bar
from nvg.training.parallel import parallelize

Wrap = Callable[[nn.Module], nn.Module]
Body = Callable[..., Any]


def fit(body: Body, config: Config, folder: str, **arguments: Any) -> Any:
    """Run `body(config, place, wrap, folder=folder, **arguments)` on every worker; returns the first one's result.

    config.cluster says how many workers there are and how many failures are survived. folder: the artifact's, path or
    URL; Ray Train keeps its own notes below it while it runs. Raises what the body raises: errors that would come
    again at once, others when cluster.max_failures restarts did not help.
    """
    # Workers stay in the job's working directory, so that relative paths mean the same; and they print a line once.
    for name in ("RAY_CHDIR_TO_TRIAL_DIR", "RAY_TRAIN_ENABLE_PRINT_PATCH"):
        os.environ.setdefault(name, "0")
    import ray
    import ray.train
    import ray.train.torch

    library: Any = ray.train  # its annotations are those of the old version
    # Nobody takes the only node away: no need of an actor that looks out for it.
    alone = sum(node["Alive"] for node in ray.nodes()) == 1
    os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0" if alone else "1"
    cluster = config.cluster
    workers: int | tuple[int, int] = cluster.num_workers
    if cluster.min_workers is not None:
        workers = (cluster.min_workers, cluster.num_workers)
    _warn_of_too_few_cpus(ray.cluster_resources().get("CPU", 0.0), config)
    if OWN_RAY not in ray.cluster_resources():
        _services_here()
    notes = storage.join(folder, "ray_train")
    path, filesystem = _storage(notes)
    tidy(folder)  # what a killed driver left
    trainer = library.torch.TorchTrainer(
        _worker,
        train_loop_config={
            "body": body,
            "config": config,
            "arguments": {"folder": folder, **arguments},
            "tracking_uri": tracking.tracking_uri(config),  # every worker takes the driver's answer
            "alone": alone,
        },
        scaling_config=library.ScalingConfig(
            num_workers=workers,
            elastic_resize_monitor_interval_s=cluster.resize_interval,
            use_gpu=cluster.use_gpu,
            resources_per_worker={
                "CPU": cluster.cpus_per_worker,
                **({"GPU": 1} if cluster.use_gpu else {}),
                **cluster.worker_resources,
            },
        ),
        run_config=library.RunConfig(
            name="run",
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=library.FailureConfig(max_failures=cluster.max_failures),
            logging_config=library.LoggingConfig(log_level="WARNING"),
        ),
    )
    with storage.space_for(notes), _interruptible():
        result = trainer.fit()
    tidy(folder)
    answer = result.return_value
    if "error" in answer:
        raise answer["error"]
    return answer["value"]


def _worker(loop: dict[str, Any]) -> dict[str, Any]:
    """What runs on every worker."""
    import ray.train
    from ray.train.torch import get_device

    config: Config = loop["config"]
    os.environ[tracking.ENVIRONMENT] = loop["tracking_uri"]
    for name in ("ray.data", "ray.train"):  # notices at every epoch and every checkpoint
        logging.getLogger(name).setLevel(logging.WARNING)
    torch.set_num_threads(config.cluster.threads_per_worker or max(1, round(config.cluster.cpus_per_worker)))
    library: Any = ray.train
    context = library.get_context()

    place = Place(
        rank=context.get_world_rank(),
        world=context.get_world_size(),
        device=get_device(),
        report=ray.train.report,
        leaving=(lambda: False) if loop["alone"] else (lambda: library.get_preemption_info() is not None),
        bar=_bar,
    )
    try:
        return {"value": loop["body"](config, place, parallelize, **loop["arguments"])}
    except NvgError as error:
        if not error.final:
            raise
        return {"error": error}


def _bar(total: int, description: str) -> Bar:
    """A bar that the driver draws."""
    import ray

    if not ray.is_initialized():
        return terminal_bar(total, description)
    from ray.experimental import tqdm_ray

    return tqdm_ray.tqdm(total=total, desc=description, unit="step")


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Ray Train takes SIGINT for itself and keeps it when it has ended: Ctrl-C would then end a later job with code 0,
    or not at all."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _services_here() -> None:
    """Ray Data starts services that stay for the cluster's life on the node that first needs them. Let that be the
    driver's, and not a worker's: this would be kept by them though idle, or take them with it."""
    from ray.data._internal.cluster_autoscaler import default_autoscaling_coordinator as coordinator
    from ray.data._internal.stats import get_or_create_stats_actor
    from ray.data._internal.usage.actor import get_or_create_usage_collection_actor
    from ray.data._internal.usage.collector import usage_stats_enabled

    coordinator.get_or_create_autoscaling_coordinator()
    get_or_create_stats_actor()
    if usage_stats_enabled():
        get_or_create_usage_collection_actor()


def _warn_of_too_few_cpus(there: float, config: Config) -> None:
    """Workers that take every CPU leave none to read their data, and the job would wait for ever without a word."""
    cluster = config.cluster
    needed = (cluster.min_workers or cluster.num_workers) * cluster.cpus_per_worker + cluster.cpus_per_reader
    if needed > there:
        print(
            f"waiting: {cluster.num_workers} workers with cluster.cpus_per_worker={cluster.cpus_per_worker:g} and a "
            f"reader with cluster.cpus_per_reader={cluster.cpus_per_reader:g} need {needed:g} CPUs, the cluster has "
            f"{there:g}. Unless more nodes come, set them lower (parts of a CPU are fine)",
            flush=True,
        )


def _storage(url: str) -> tuple[str, Any]:
    """A path and a filesystem for Ray Train, by the same fsspec settings that the rest of the project uses."""
    if not storage.is_url(url):
        return os.path.abspath(url), None
    import fsspec
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    filesystem, path = fsspec.core.url_to_fs(url)
    return re.sub(r"/+$", "", path), PyFileSystem(FSSpecHandler(filesystem))
