"""Samples per second by number of training workers: the generators, through pipelines/train.py, one batch shared out.

    python -m benchmarks.workers_rate --workers 1 2 [--rounds 2] --config conf/fashion_mnist.yaml key=value ...

Makes tokens once (a tokenizer of 20 steps, data.limit=8000 images), then trains train.steps=200 steps with each number
of workers in turn, one thread each, on a Ray of its own. Images per second are those that the training records.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path

from nvg import storage

ROOT = Path(__file__).parent.parent
SHORT = ("tokenizer_train.steps=20", "data.limit=8000", "train.steps=200", "cluster.threads_per_worker=1")


def train(workers: int, settings: list[str], output: str) -> dict[str, float]:
    """Train once with a number of workers; returns the figures that the training recorded."""
    command = [sys.executable, str(ROOT / "pipelines" / "train.py"), *settings, f"cluster.num_workers={workers}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    (folder,) = Path(output).glob("generators-*")
    figures = storage.read_json(str(folder / "metadata.json"))["training"]
    storage.remove(str(folder))  # the number of workers is no part of its name
    return figures


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--config", default="conf/fashion_mnist.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_intermixed_args()
    trainings: dict[int, list[dict[str, float]]] = {workers: [] for workers in arguments.workers}
    with tempfile.TemporaryDirectory() as output:
        settings = ["--config", arguments.config, *SHORT, *arguments.overrides, f"output={output}"]
        command = [sys.executable, str(ROOT / "pipelines" / "run.py"), "--until", "tokens", *settings]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        for _ in range(arguments.rounds):
            for workers, rows in trainings.items():
                rows.append(train(workers, settings, output))
    machine = platform.processor() or platform.machine()
    print(f"\n{arguments.config} {' '.join(arguments.overrides)}, {machine}, {date.today()}\n")
    print("| workers | images a second | times the first | waiting for data |\n| --- | --- | --- | --- |")
    rate = {n: statistics.median(row["images_per_second"] for row in rows) for n, rows in trainings.items()}
    for workers, rows in trainings.items():
        waited = statistics.median(row["data_wait_share"] for row in rows)
        print(f"| {workers} | {rate[workers]:.1f} | {rate[workers] / rate[arguments.workers[0]]:.2f} | {waited:.1%} |")


if __name__ == "__main__":
    main()
