"""All that this project knows about Ray: start, pools, threads, devices, warnings.

Lines and bars stand in nvg/console.py, Ray Train in nvg/training/ray_train.py and Ray Serve in
nvg/serving/deployment.py, each with its own edge.
Importing this module imports neither Ray nor torch: the functions import what they use.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from nvg import tracking
from nvg.config import ClusterConfig, Config, ServeConfig
from nvg.console import TERMINAL, listen, on_terminal, say, verbose

if TYPE_CHECKING:
    import torch

OWN_RAY = "nvg_own_ray"  # a resource of a Ray that one of our commands started: it ends with it, and does not grow


# ---- start ----


def start_ray(config: ClusterConfig | ServeConfig) -> None:
    """Connect to the cluster that RAY_ADDRESS or a submitted job names, else start a Ray on this machine, and show of
    its processes what nvg/console.py says."""
    import ray

    if ray.is_initialized():
        return
    shown = {"runtime_env": {"env_vars": environment_variables()}, "log_to_driver": True}
    if not verbose():
        shown["logging_level"] = logging.ERROR
    if not on_terminal():
        os.environ.setdefault("RAY_COLOR_PREFIX", "0")  # escape codes before each line of a worker
    if os.environ.get("RAY_ADDRESS"):
        context = ray.init(**shown)
    else:
        keep_workers(config.local_cpus or os.cpu_count() or 1)
        store = config.object_store_gb
        context = ray.init(
            address="local",
            num_cpus=config.local_cpus,
            object_store_memory=int(store * 1e9) if store else None,
            resources={OWN_RAY: 1},
            include_dashboard=True,
            **shown,
        )
    listen()
    cpus, where = ray.cluster_resources().get("CPU", 0), os.environ.get("RAY_ADDRESS", "this machine")
    dashboard = f", dashboard at http://{context.dashboard_url}" if context.dashboard_url else ""
    say(f"Ray on {where}: {cpus:g} CPUs{dashboard}")


def logs_folder() -> str:
    """The folder of the running Ray's log files, on this process's node."""
    from ray._private import worker

    return str(worker._global_node.get_logs_dir_path())


def environment_variables() -> dict[str, str]:
    """The environment of the processes in which Ray runs this job's work, over that of their nodes."""
    variables = {
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),  # each worker sets torch's own threads
        # Threads that wait must not spin: readers want the same cores, and spinning made steps 5 times slower.
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
        "RAY_DATA_DISABLE_PROGRESS_BARS": "1",  # every long step has one bar of this project, not one per operator
        TERMINAL: str(int(on_terminal())),
    }
    if os.environ.get(tracking.ENVIRONMENT):  # a node of a cluster may name another server, or none
        variables[tracking.ENVIRONMENT] = tracking.absolute_uri(os.environ[tracking.ENVIRONMENT])
    return variables


def keep_workers(cpus: int) -> None:
    """Have the Ray that this process starts keep as many idle worker processes as tasks of a quarter of a CPU fit.

    By default Ray keeps one per CPU and ends the others after a second. More tasks than CPUs run at once where each
    takes a part of a CPU, so processes come and go, and each needs seconds of a core to import torch: on two nodes of
    two CPUs, tokens took half as long again (docs/reports/scale.md). A running cluster decides for itself, by the same
    variable where it was started.
    """
    os.environ.setdefault("RAY_num_workers_soft_limit", str(4 * cpus))


def keep_services_here() -> None:
    """Start the services that Ray Data keeps for the cluster's life, on the driver's node.

    Ray Data starts them on the node that first needs them. On a worker's node they would keep an idle node alive, or
    be lost with it.
    """
    from ray.data._internal.cluster_autoscaler import default_autoscaling_coordinator as coordinator
    from ray.data._internal.stats import get_or_create_stats_actor
    from ray.data._internal.usage.actor import get_or_create_usage_collection_actor
    from ray.data._internal.usage.collector import usage_stats_enabled

    coordinator.get_or_create_autoscaling_coordinator()
    get_or_create_stats_actor()
    if usage_stats_enabled():
        get_or_create_usage_collection_actor()


def is_own_ray() -> bool:
    """Whether one of our commands started the running Ray, for itself alone."""
    import ray

    return OWN_RAY in ray.cluster_resources()


# ---- threads, devices, memory ----


def set_threads(cluster: ClusterConfig) -> None:
    """Give torch, in this process, the threads that cluster.threads_per_worker or cluster.cpus_per_worker allows."""
    import torch

    torch.set_num_threads(cluster.threads_per_worker or max(1, round(cluster.cpus_per_worker)))


def device_of(cluster: ClusterConfig) -> torch.device:
    """The device that an actor or a task of this cluster configuration computes on."""
    import torch

    return torch.device("cuda" if cluster.use_gpu else "cpu")


class PeakMemory:
    """The most memory that this machine had in use during a block, above what it had at the block's start.

    It is of the whole machine, since Ray's processes share pages: a sum over processes would count them many times.
    """

    def __enter__(self) -> PeakMemory:
        import psutil

        self._used = lambda: psutil.virtual_memory().used
        self._start = self._peak = self._used()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.5):
            self._peak = max(self._peak, self._used())

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def gigabytes(self) -> float:
        """The peak in GB (10^9 bytes)."""
        return (self._peak - self._start) / 1e9


# ---- Ray Data ----


def blocks(rows: list[dict[str, Any]]) -> Any:
    """A Ray data set with one block per row, on the running Ray."""
    import ray

    dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
    dataset.context.raise_original_map_exception = True  # else the type of an error is lost: the disk, or the data?
    _quieten(dataset.context)
    return dataset


def _quieten(context: Any) -> None:
    """Leave out what Ray Data says that nobody can act on: its plan, its start and end, the bars that it does not draw,
    and that tasks use more memory than the nothing that was reserved for them."""
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)
    detectors = context.issue_detectors_config
    detectors.detectors = [one for one in detectors.detectors if one.__name__ != "HighMemoryIssueDetector"]


def actors(cluster: ClusterConfig, *, calls: int = 1) -> Any:
    """Ray Data's pool of cluster.encoders actors, on the running Ray. calls: how many rows an actor works on at once,
    each in a thread of its own.

    All actors are requested at once, which makes a cluster add nodes: a pool that grows by itself stays at one actor
    where readers take the free CPUs. Where the actors leave no CPU to a reader, both would wait for each other: in a
    Ray of our own, which does not grow, the pool is smaller then; on a cluster it stays. Either prints a warning.
    """
    import ray

    resources, size = ray.cluster_resources(), cluster.encoders
    cpus = resources.get("CPU", 0.0)
    room = size
    if cluster.cpus_per_worker > 0:
        room = max(0, int((cpus - cluster.cpus_per_reader) / cluster.cpus_per_worker + 1e-6))
    if size > room:
        actors_asked = f"cluster.encoders={size} with cluster.cpus_per_worker={cluster.cpus_per_worker:g}"
        rest = f"leave none of {cpus:g} CPUs to a reader with cluster.cpus_per_reader={cluster.cpus_per_reader:g}"
        if OWN_RAY in resources and room:
            size = room
            say(f"{actors_asked} {rest}: {size} instead")
        else:
            say(f"{actors_asked} {rest}: unless the cluster grows, nothing will run; make them less")
    if calls == 1:
        return ray.data.ActorPoolStrategy(size=size)
    # No row waits at an actor besides those that it works on: two hold as much memory as one and the next.
    return ray.data.ActorPoolStrategy(
        size=size,
        max_tasks_in_flight_per_actor=calls,
        max_concurrent_calls_per_actor=calls,
        enable_true_multi_threading=True,
    )


# ---- warnings ----


def warn_of_too_few_cpus(cpus: float, cluster: ClusterConfig) -> None:
    """Say that a training will wait for ever, because its workers take every CPU and leave none to read their data.

    cpus: those of the running Ray.
    """
    needed = (cluster.min_workers or cluster.num_workers) * cluster.cpus_per_worker + cluster.cpus_per_reader
    if needed > cpus:
        say(
            f"waiting: {cluster.num_workers} workers with cluster.cpus_per_worker={cluster.cpus_per_worker:g} and a "
            f"reader with cluster.cpus_per_reader={cluster.cpus_per_reader:g} need {needed:g} CPUs, the cluster has "
            f"{cpus:g}. Unless more nodes come, set them lower (parts of a CPU are fine)",
        )


def warn_of_no_room_beside(resources: Mapping[str, float], cluster: ClusterConfig) -> None:
    """Say that evaluations beside a training will wait for its end, because its workers leave no room for them.

    resources: those of the running Ray, by name.
    """
    per_worker = {"CPU": cluster.cpus_per_worker, **({"GPU": 1} if cluster.use_gpu else {}), **cluster.worker_resources}
    for name, amount in per_worker.items():
        beside = cluster.encoders * amount + (2 * cluster.cpus_per_reader if name == "CPU" else 0)  # one reads already
        needed = cluster.num_workers * amount + beside
        if needed > (there := resources.get(name, 0.0)):
            say(
                f"waiting: {cluster.num_workers} training workers and cluster.encoders={cluster.encoders} for the "
                f"evaluations beside them need {needed:g} {name}, the cluster has {there:g}: unless nodes come, the "
                "figures come after the training",
            )


def warn_of_small_store(config: Config, piece_bytes: int) -> None:
    """Say that the images of all readers and encoders are more than Ray's object store holds.

    Ray Data would silently write them to disk, or wait. piece_bytes: the memory that a reading task holds.
    """
    import ray

    cluster, resources = config.cluster, ray.cluster_resources()
    cpus, store = resources.get("CPU", 0), resources.get("object_store_memory", 0)
    readers = max(1, int((cpus - cluster.encoders * cluster.cpus_per_worker) // cluster.cpus_per_reader))
    images, needed = config.data.unit_images, piece_bytes * (readers + cluster.encoders)
    if needed > store:
        say(
            f"warning: {readers} readers and {cluster.encoders} encoders with two pieces each of data.unit_images="
            f"{images} images are {needed / 1e9:.1f} GB, and Ray's object store has {store / 1e9:.1f} GB: readers will "
            f"wait, or images go to disk; set data.unit_images={max(1, int(images * store / needed))}, or give a Ray "
            "that is started here a larger cluster.object_store_gb",
        )
