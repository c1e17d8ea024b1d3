"""What an image costs build_tokens on 1, 2 and 4 nodes of one machine, and what that says of machines of their own.

    python -m benchmarks.node_scaling [--nodes 1 2 4] [--images 15000] [--rounds 1] [key=value ...]

Nodes are raylets beside a head without CPUs; each is a group of processes, of which the kernel counts the processor
time (cgroups; needs root). They share this machine's cores, so the clock says nothing of scaling; the time that a node
spends on an image does: nodes with cores of their own would make n times as many images as one, times the first one's
time an image over theirs. What the driver and the head spend on an image bounds them all.

Fashion-MNIST by conf/fashion_mnist.yaml, parts of 100 images, an untrained tokenizer, --images for each node. Counted
in the second half of a run, but for the last twentieth: processes start in the first one mostly. Prints a table. Linux.
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
CPUS = 2  # of a node, pretended: an encoder, readers, writers
SETTINGS = (
    "data.unit_images=100",
    "cluster.cpus_per_worker=1",
    "cluster.cpus_per_reader=0.5",
    "cluster.threads_per_worker=1",
)
Sample = tuple[float, int, float, float]  # time, parts that are written, processor seconds of nodes, of driver and head


class Account:
    """A group of processes whose processor time the kernel adds up, of those that have ended too."""

    def __init__(self, name: str) -> None:
        root = Path("/sys/fs/cgroup")
        self.old = (root / "cpuacct").exists()  # cgroups, version 1; version 2 was not run here
        self.folder = (root / "cpuacct" if self.old else root) / name
        try:
            self.folder.mkdir()
        except OSError as error:
            raise SystemExit(f"error: the kernel lets no group of processes be made here: {error}") from None

    def add(self, process: psutil.Process) -> None:
        """A process, all that it has started and all that these will start."""
        for _ in range(2):  # a second look finds what was started during the first
            for member in (process, *process.children(recursive=True)):
                (self.folder / "cgroup.procs").write_text(str(member.pid))

    def seconds(self) -> float:
        """Seconds of a core."""
        if self.old:
            return int((self.folder / "cpuacct.usage").read_text()) / 1e9
        lines = (line.split() for line in (self.folder / "cpu.stat").read_text().splitlines())
        return int(dict(lines)["usage_usec"]) / 1e6

    def remove(self) -> None:
        """When its processes have ended."""
        for _ in range(100):
            try:
                return self.folder.rmdir()
            except OSError:
                time.sleep(0.1)


@contextmanager
def nodes(count: int) -> Iterator[Callable[[], tuple[float, float]]]:
    """A Ray of `count` nodes, connected. Gives what reads processor seconds: the nodes', the driver's and head's."""
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
    """One building of tokens on `count` nodes: milliseconds of a core an image."""
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
            about = build_tokens(config, tokenizer, output)
        finally:
            stop.set()
            watcher.join()
    first = next(sample for sample in samples if sample[1] >= about["parts"] / 2)
    last = [sample for sample in samples if sample[1] <= about["parts"] * 0.95][-1]
    images = (last[1] - first[1]) * about["rows"] / about["parts"]
    return {
        "encoding": len(about["images_by_node"]),
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
    found: dict[int, list[dict[str, float]]] = {count: [] for count in arguments.nodes}
    settings = [*SETTINGS, *arguments.overrides]
    with tempfile.TemporaryDirectory() as scratch:
        config = configuration.load("conf/fashion_mnist.yaml", settings)
        torch.manual_seed(0)
        state = Autoencoder(config.tokenizer).state_dict()
        names = [str(number) for number in range(config.data.num_classes)]
        save_tokenizer(f"{scratch}/tokenizer", state, config, class_names=names, metadata={})
        for number in range(arguments.rounds):
            for count, rows in found.items():
                more = [f"data.limit={arguments.images * count}", f"cluster.encoders={count}"]
                config = configuration.load("conf/fashion_mnist.yaml", [*settings, *more])
                rows.append(run(config, f"{scratch}/tokenizer", f"{scratch}/{number}-{count}", count))
                print(f"{count} nodes: {rows[-1]}", file=sys.stderr, flush=True)
    print(f"\n{os.cpu_count()} cores, {arguments.rounds} rounds, {arguments.images} images a node, {date.today()}\n")
    head = ("nodes", "that encode", "images/s here", "ms of a core an image", "driver and head", "with own cores")
    print("| " + " | ".join(head) + " |\n|" + " --- |" * len(head))
    first = 0.0
    for count, rows in found.items():
        row = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
        first = first or row["nodes"]
        times = count * first / row["nodes"]
        print(
            f"| {count} | {row['encoding']:.0f} | {row['rate']:,.0f} | {row['nodes']:.2f} | {row['driver']:.2f} | "
            f"{times:.2f} x |"
        )


if __name__ == "__main__":
    main()
