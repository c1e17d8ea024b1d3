"""All that this project knows about Ray: start, pools, threads, devices, bars, warnings."""

from __future__ import annotations

import os
import threading
from typing import Any

from nvg.config import ClusterConfig, ServeConfig

OWN_RAY = "nvg_own_ray"  # a resource of a Ray that a command of ours has started: it ends with it, and does not grow


def start_ray(config: ClusterConfig | ServeConfig) -> None:
    """Connect to the cluster that RAY_ADDRESS or a submitted job names, else start a Ray of our own here."""
    import ray

    if ray.is_initialized():
        return
    environment = {
        "env_vars": {
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),  # torch's own threads are set by each worker
            # Threads that wait must not spin: readers want the same cores, and spinning made steps 5 times slower.
            "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
            "RAY_DATA_DISABLE_PROGRESS_BARS": "1",  # every long step has one bar of ours, not one an operator
        }
    }
    if os.environ.get("RAY_ADDRESS"):
        ray.init(runtime_env=environment, log_to_driver=True)
        return
    keep_workers(config.local_cpus or os.cpu_count() or 1)
    store = config.object_store_gb
    ray.init(
        address="local",
        num_cpus=config.local_cpus,
        object_store_memory=int(store * 1e9) if store else None,
        resources={OWN_RAY: 1},
        include_dashboard=True,
        runtime_env=environment,
    )


def keep_workers(cpus: int) -> None:
    """Have the Ray that this process starts keep as many idle worker processes as tasks of a quarter of a CPU fit.

    By default it keeps one a CPU and ends the others after a second. Of tasks that take a part of a CPU more run at
    once, so that processes come and go, and each takes seconds of a core to import torch: on two nodes of two CPUs
    tokens took half as long again (docs/scale.md). A running cluster decides for itself, by the same variable where it
    was started.
    """
    os.environ.setdefault("RAY_num_workers_soft_limit", str(4 * cpus))


def progress(total: int, description: str, unit: str) -> Any:
    """A progress bar with rate and time left that the driver draws, wherever the job's code runs."""
    from ray.experimental import tqdm_ray

    return tqdm_ray.tqdm(total=total, desc=description, unit=unit)


class PeakMemory:
    """The most memory that this machine had in use during a block, above what it had at the block's start.

    Of the whole machine, since Ray's processes share pages: a sum over processes would count them many times.
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
        """GB (10^9 bytes)."""
        return (self._peak - self._start) / 1e9


def blocks(rows: list[dict[str, Any]]) -> Any:
    """A Ray data set with a block a row, on the running Ray."""
    import ray

    dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
    dataset.context.raise_original_map_exception = True  # else the type of an error is lost: the disk, or the data?
    return dataset


def actors(cluster: ClusterConfig) -> Any:
    """Ray Data's pool of cluster.encoders actors, on the running Ray. All are asked for at once, which is what brings
    nodes: a pool that grows by itself stays at one actor where readers take what CPUs are free.

    In a Ray of our own, which does not grow, they are so few, and it is said, that a reader has room beside them. On a
    cluster that has not the room now it is said that it must grow: without, encoders and readers wait for each other.
    """
    import ray

    resources, size = ray.cluster_resources(), cluster.encoders
    there = resources.get("CPU", 0.0)
    room = size
    if cluster.cpus_per_worker > 0:
        room = max(0, int((there - cluster.cpus_per_reader) / cluster.cpus_per_worker + 1e-6))
    if size > room:
        what = f"cluster.encoders={size} with cluster.cpus_per_worker={cluster.cpus_per_worker:g}"
        rest = f"leave none of {there:g} CPUs to a reader with cluster.cpus_per_reader={cluster.cpus_per_reader:g}"
        if OWN_RAY in resources and room:
            size = room
            print(f"{what} {rest}: {size} instead", flush=True)
        else:
            print(f"{what} {rest}: unless the cluster grows, nothing will run; make them less", flush=True)
    return ray.data.ActorPoolStrategy(size=size)
