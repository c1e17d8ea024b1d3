"""The time of a core that build_tokens spends per image on 1, 2 and 4 nodes, simulated on one machine.

    python -m benchmarks.node_scaling [--nodes 1 2 4] [--images 15000] [--rounds 1] [key=value ...]

Nodes are raylets; the head has no CPUs. Each node is a group of processes, of which the kernel counts the processor
time (cgroups; needs root). They share this machine's cores, so the clock says nothing about scaling. The time that a
node spends per image does: n nodes with cores of their own would make n times as many images as one, times the time per
image of the one over theirs. The time that the driver and the head spend per image bounds them all.

Fashion-MNIST by conf/fashion_mnist.yaml, parts of 100 images, an untrained tokenizer, --images for each node. Counted
in the second half of a run, but for the last twentieth: most processes start in the first half. Prints a table. Linux.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path

import psutil
import torch

from nvg import config as configuration
from nvg.artifacts.models import save_tokenizer
from nvg.autoencoder import Autoencoder
from nvg.cluster import keep_workers
from nvg.config import Config

STORE = 200 * 10**6  # bytes of a node's object store
CPUS = 2  # that a node claims to have: for an encoder, readers, writers
SETTINGS = (
    "data.unit_images=100",
    "cluster.cpus_per_worker=1",
    "cluster.cpus_per_reader=0.5",
    "cluster.threads_per_worker=1",
)
Sample = tuple[float, int, float, float]  # time, written parts, processor seconds of nodes, of driver and head


class Account:
    """A group of processes whose processor time the kernel adds up; processes that have ended count too."""

    def __init__(self, name: str) -> None:
        root = Path("/sys/fs/cgroup")
        self.version_1 = (root / "cpuacct").exists()  # of cgroups; version 2 was not run
        self.folder = (root / "cpuacct" if self.version_1 else root) / name
        try:
            self.folder.mkdir()
        except OSError as error:
            raise SystemExit(
                f"error: the kernel does not let this user make a group of processes (cgroup): {error}"
            ) from None

    def add(self, process: psutil.Process) -> None:
        """Add a process, its descendants, and all that these will start."""
        for _ in range(2):  # a second look finds what was started during the first
            for member in (process, *process.children(recursive=True)):
                (self.folder / "cgroup.procs").write_text(str(member.pid))

    def seconds(self) -> float:
        """The seconds of a core that the group has used."""
        if self.version_1:
            return int((self.folder / "cpuacct.usage").read_text()) / 1e9
        lines = (line.split() for line in (self.folder / "cpu.stat").read_text().splitlines())
        return int(dict(lines)["usage_usec"]) / 1e6

    def remove(self) -> None:
        """Remove the group once its processes have ended."""
        for _ in range(100):
            try:
                return self.folder.rmdir()
            except OSError:
                time.sleep(0.1)


@contextmanager
def nodes(count: int) -> Iterator[Callable[[], tuple[float, float]]]:
    """A connected Ray of `count` nodes. Gives a function that returns processor seconds of nodes, and of the rest."""
    import ray
    from ray.cluster_utils import Cluster

    keep_workers(CPUS)
    rest = Account(f"nvg-{os.getpid()}-rest")
    accounts = [rest]
    head = {"num_cpus": 0, "object_store_memory": STORE, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        rest.add(psutil.Process())
        for number in range(count):
            node = cluster.add_node(num_cpus=CPUS, object_store_memory=STORE)
            accounts.append(Account(f"nvg-{os.getpid()}-{number}"))
            for infos in node.all_processes.values():
                for info in infos:
                    accounts[-1].add(psutil.Process(info.process.pid))
        environment = {"env_vars": {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}}
        ray.init(address=cluster.address, log_to_driver=False, runtime_env=environment)
        yield lambda: (sum(account.seconds() for account in accounts[1:]), rest.seconds())
    finally:
        ray.shutdown()
        cluster.shutdown()
        for process in rest.folder.joinpath("cgroup.procs").read_text().split():  # this one, among others
            (rest.folder.parent / "cgroup.procs").write_text(process)
        for account in accounts:
            account.remove()


def run(config: Config, tokenizer: str, output: str, count: int) -> dict[str, float]:
    """Build tokens on `count` nodes; returns milliseconds of a core per image."""
    from pipelines.build_tokens import build_tokens

    samples: list[Sample] = []
    with nodes(count) as seconds:
        stop = threading.Event()

        def watch() -> None:
            while not stop.wait(0.2):
                samples.append((time.monotonic(), len(list(Path(output).glob("part-*"))), *seconds()))

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            metadata = build_tokens(config, tokenizer, output)
        finally:
            stop.set()
            watcher.join()
    first = next(sample for sample in samples if sample[1] >= metadata["parts"] / 2)
    last = [sample for sample in samples if sample[1] <= metadata["parts"] * 0.95][-1]
    images = (last[1] - first[1]) * metadata["rows"] / metadata["parts"]
    return {
        "encoding": len(metadata["images_by_node"]),
        "rate": images / (last[0] - first[0]),
        "nodes": (last[2] - first[2]) / images * 1e3,
        "driver": (last[3] - first[3]) / images * 1e3,
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--images", type=int, default=15_000, help="for each node")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_intermixed_args()
    measured: dict[int, list[dict[str, float]]] = {count: [] for count in arguments.nodes}
    settings = [*SETTINGS, *arguments.overrides]
    with tempfile.TemporaryDirectory() as scratch:
        config = configuration.load("conf/fashion_mnist.yaml", settings)
        torch.manual_seed(0)
        state = Autoencoder(config.tokenizer).state_dict()
        names = [str(number) for number in range(config.data.num_classes)]
        save_tokenizer(f"{scratch}/tokenizer", state, config, class_names=names, metadata={})
        for number in range(arguments.rounds):
            for count, rows in measured.items():
                more = [f"data.limit={arguments.images * count}", f"cluster.encoders={count}"]
                config = configuration.load("conf/fashion_mnist.yaml", [*settings, *more])
                rows.append(run(config, f"{scratch}/tokenizer", f"{scratch}/{number}-{count}", count))
                print(f"{count} nodes: {rows[-1]}", file=sys.stderr, flush=True)
    print(f"\n{os.cpu_count()} cores, {arguments.rounds} rounds, {arguments.images} images per node, {date.today()}\n")
    head = ("nodes", "that encode", "images/s", "ms of a core per image", "driver and head", "with cores of their own")
    print("| " + " | ".join(head) + " |\n|" + " --- |" * len(head))
    first = 0.0
    for count, rows in measured.items():
        row = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
        first = first or row["nodes"]
        times = count * first / row["nodes"]
        print(
            f"| {count} | {row['encoding']:.0f} | {row['rate']:,.0f} | {row['nodes']:.2f} | {row['driver']:.2f} | "
            f"{times:.2f} x |"
        )


if __name__ == "__main__":
    main()
