"""The cost of HTTP: the sampler called in this process, and through Ray Serve on loopback, in one run.

    python -m benchmarks.load_test [--model fashion-mnist] [--batch 16] [--seconds 45] [--rounds 15]

Both have the same weights, torch threads, allocator settings and images per batch, and take turns within each round, so
that changes of the machine's speed meet both. Prints a Markdown table (images per second, percentiles of latency) and
medians over the rounds: the milliseconds that HTTP adds, and the throughput served against that in process.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path

ROOT = Path(__file__).parent.parent


@dataclass
class Figures:
    """Latencies (s) of calls, and images per second over all of them."""

    seconds: list[float]
    images_per_second: float

    def row(self, name: str) -> str:
        """A row of the table."""
        cuts = statistics.quantiles(self.seconds, n=100, method="inclusive")
        p50, p95, p99 = (1000 * cuts[index] for index in (49, 94, 98))
        return f"| {name} | {len(self.seconds)} | {self.images_per_second:.1f} | {p50:.1f} | {p95:.1f} | {p99:.1f} |"

    @property
    def median(self) -> float:
        """The median latency in seconds."""
        return statistics.median(self.seconds)


def measure(call: Callable[[int], None], *, images: int, seconds: float, callers: int = 1) -> Figures:
    """Call again and again in each of `callers` threads for some seconds, twice at least: percentiles are of several
    calls. call(number) makes `images` images."""
    latencies: list[float] = []
    start = time.perf_counter()
    until = start + seconds

    def work(caller: int) -> None:
        number = caller
        while (before := time.perf_counter()) < until or len(latencies) < 2:
            call(number)
            latencies.append(time.perf_counter() - before)
            number += callers

    threads = [threading.Thread(target=work, args=(caller,)) for caller in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return Figures(latencies, images * len(latencies) / (time.perf_counter() - start))


def together(rounds: list[Figures]) -> Figures:
    """The calls of all rounds together."""
    seconds = [value for figures in rounds for value in figures.seconds]
    return Figures(seconds, statistics.mean(figures.images_per_second for figures in rounds))


class Client:
    """A client that keeps one connection per thread."""

    def __init__(self, port: int, images: int) -> None:
        self.port, self.images, self.local = port, images, threading.local()

    def __call__(self, number: int) -> None:
        """Make one request: of `images` images, or for 0 of /healthz. Raises RuntimeError unless the answer is 200."""
        connection = getattr(self.local, "connection", None)
        if connection is None:
            connection = self.local.connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        if self.images:
            body = json.dumps({"prompt": str(number % 10), "n": self.images, "seed": number})
            connection.request("POST", "/v1/images/generations", body, {"content-type": "application/json"})
        else:
            connection.request("GET", "/healthz")
        answer = connection.getresponse()
        text = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"{answer.status}: {text[:300]!r}")


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line. argv: without the program."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="fashion-mnist")
    parser.add_argument("--batch", type=int, default=16, help="images drawn at once")
    parser.add_argument("--seconds", type=float, default=45, help="of each measurement, over all rounds")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    parser.add_argument(
        "--port", type=int, help="of a running Serve on this machine; default: start one on a free port"
    )
    return parser.parse_args(argv)


def run_rounds(arguments: argparse.Namespace) -> dict[str, list[Figures]]:
    """Start the server and load the sampler, and measure both: see `in_turns`."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import torch

    import nvg
    from pipelines.serve import free_ports

    torch.set_num_threads(arguments.threads)
    sampler = nvg.load(arguments.model)

    def in_process(images: int, seconds: float) -> Figures:
        def call(number: int) -> None:
            sampler.generate([number % len(sampler.class_names)] * images, seed=number)

        call(0)
        return measure(call, images=images, seconds=seconds)

    port = arguments.port or free_ports(1)[0]
    job = None if arguments.port else serve(arguments, port)
    try:
        wait_until_ready(port, job)
        Client(port, arguments.batch)(0)
        return in_turns(arguments, port, in_process)
    finally:
        if job is not None:
            job.terminate()
            job.wait()


def main(argv: list[str] | None = None) -> None:
    """Measure and print. argv: the command line without the program."""
    arguments = parse(argv)
    from nvg.serving.deployment import ALLOCATOR

    if not ALLOCATOR.keys() <= os.environ.keys():  # glibc reads them where a process starts: start again
        given = sys.argv[1:] if argv is None else argv
        command = [sys.executable, "-m", "benchmarks.load_test", *given]
        os.execve(sys.executable, command, os.environ | ALLOCATOR)
    report(arguments, run_rounds(arguments))


def serve(arguments: argparse.Namespace, port: int) -> subprocess.Popen:
    """Start the serving job as a user does, in another process: this one is the client alone."""
    settings = {
        "model": arguments.model,
        "port": port,
        "threads_per_replica": arguments.threads,
        "max_batch": arguments.batch,
        "max_replicas": 1,
        "local_cpus": 2,
    }
    command = [sys.executable, "pipelines/serve.py", "--config", "conf/serving/fashion_mnist.yaml"]
    command += [f"{name}={value}" for name, value in settings.items()]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "NVG_"))}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)


def wait_until_ready(port: int, job: subprocess.Popen | None, seconds: float = 180) -> None:
    """Return when images are being drawn. Raises RuntimeError when the job has ended, and TimeoutError."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5):
                return
        except OSError:  # it does not listen yet, or answers that it is not ready
            if job is not None and job.poll() is not None:
                raise RuntimeError(f"the serving job ended with {job.returncode}; its message is above") from None
            time.sleep(0.5)
    raise TimeoutError(f"nothing serves on port {port} after {seconds:.0f} s")


def in_turns(
    arguments: argparse.Namespace, port: int, in_process: Callable[[int, float], Figures]
) -> dict[str, list[Figures]]:
    """Every measurement once per round."""
    batch, seconds = arguments.batch, arguments.seconds / arguments.rounds
    measured: dict[str, list[Figures]] = {}
    for _ in range(arguments.rounds):
        for name, run in (
            ("way", lambda: measure(Client(port, 0), images=0, seconds=seconds / 4)),
            ("single", lambda: in_process(1, seconds)),
            ("one", lambda: measure(Client(port, 1), images=1, seconds=seconds)),
            ("whole", lambda: in_process(batch, seconds)),
            ("many", lambda: measure(Client(port, batch), images=batch, seconds=seconds, callers=2)),
            ("singles", lambda: measure(Client(port, 1), images=1, seconds=seconds, callers=2 * batch)),
        ):
            measured.setdefault(name, []).append(run())
    return measured


def report(arguments: argparse.Namespace, measured: dict[str, list[Figures]]) -> None:
    """Print the table of all calls, and the medians of the comparisons within rounds."""
    way, single, one, whole, many, singles = (together(rounds) for rounds in measured.values())
    batch = arguments.batch
    print(f"\n{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {date.today()}; {arguments}\n")
    print("| | calls | images/s | ms: median | 95% | 99% |\n| --- | --- | --- | --- | --- | --- |")
    print(way.row("served, /healthz: the way alone"))
    print(single.row("in process, 1 image"))
    print(one.row("served, 1 image, one client"))
    print(whole.row(f"in process, {batch} images"))
    print(many.row(f"served, {batch} images a request, two clients"))
    print(singles.row(f"served, 1 image a request, {2 * batch} clients"))
    pairs = zip(measured["one"], measured["single"], strict=True)
    added = statistics.median(one.median - single.median for one, single in pairs)
    print(f"\nadded to the median of a single request: {1000 * added:.1f} ms")
    for text, name in ((f"{batch} images a request", "many"), ("1 image a request", "singles")):
        pairs = zip(measured[name], measured["whole"], strict=True)
        ratio = statistics.median(served.images_per_second / local.images_per_second for served, local in pairs)
        print(f"served throughput against in-process at batch {batch}, {text}: {ratio:.0%}")


if __name__ == "__main__":
    main()
