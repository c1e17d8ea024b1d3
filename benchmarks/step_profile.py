"""Where does a training step of the generators go? The parts of a step as shares, and the share of host time.

    python -m benchmarks.step_profile [--config FILE] [--threads 1] [--steps 5] [--rounds 10] key=value
    python -m benchmarks.step_profile --config conf/imagenet_d16.yaml --steps 1 --rounds 2 \
        content.depth=12 structure.depth=12 train.batch_size=4 repa.weights=null cluster.num_workers=1 \
        data.unit_images=64 train.shuffle_rows=64                                   # d12, 4 images of its batch

The loop, the task, the token stream and Ray Data are those of pipelines/train.py; weights are random, and so are the
tokens, written as token Parquet into a temporary folder. A round makes --steps steps as they are, for their time, and
as many under torch's profiler, for their parts: the parts are methods of the loop (`PARTS`), which only this script
marks for the profiler. The figures are of the quickest round, which other work disturbed least.

Host time is the calling thread's time outside of tensor operations: the time of a step as it is, less the self time of
all aten operations on that thread under the profiler. So it is Python, autograd's bookkeeping and waiting for data. The
time under the profiler less the same is an upper bound: the profiler's own work is in it.
"""

from __future__ import annotations

import argparse
import math
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks import loops
from nvg import config as configuration
from nvg.autoencoder import Autoencoder
from nvg.cluster import start_ray
from nvg.config import Config
from nvg.data import token_batches
from nvg.data.tokens import TokenFormat, finish, part_name, write_part
from nvg.training.generator_task import GeneratorTask
from nvg.training.jobs import endless
from nvg.training.loop import Loop, Place
from nvg.training.prefetch import Prefetch
from nvg.training.task import Batch

# The parts of a step, each a method of Loop. None calls another.
PARTS = {
    "waiting for data, moving it": "fetch",
    "rates, zeroing gradients": "set_rates",
    "seeds": "seed_slice",
    "forward": "forward",
    "backward": "backward",
    "clip, with the check for finite gradients": "clip",
    "optimizer": "optimize",
    "average": "average",
    "recording a step": "record",
    "recording the means": "log",
}
WARM = 2  # steps before anything is measured


# ---- the training ----


def write_tokens(config: Config, folder: str, rows: int) -> list[str]:
    """Write a finished token set of random tokens; returns its class names."""
    rng = np.random.default_rng(0)
    sizes, units = config.tokenizer, -(-rows // config.data.unit_images)
    names = [str(number) for number in range(config.data.num_classes)]
    form = TokenFormat("random", sizes.last_stage, sizes.positions, sizes.codebook_size, names)
    for unit in range(units):
        count = config.data.unit_images
        columns = {
            "image_id": [f"{unit}-{number}" for number in range(count)],
            "label": rng.integers(0, len(names), count),
            "content": rng.integers(0, sizes.codebook_size, (count, 2 * sizes.positions - 1)),
            "structure": rng.permuted(np.tile(np.arange(sizes.positions), (count, 1)), axis=1),
        }
        write_part(folder, form, part_name(unit, 0), 0, columns, [])
    finish(folder, form, {(unit, 0) for unit in range(units)}, {"views": 1})
    return names


def token_stream(config: Config, tokens: str, steps: int) -> Callable[[int], Iterator[Batch]]:
    """The batches of a folder of tokens from any step on, by Ray Data."""
    settings = config.train

    def epoch(number: int, skip: int) -> Iterator[Batch]:
        return token_batches(
            tokens,
            epoch=number,
            batch_size=settings.batch_size,
            seed=config.seed,
            shuffle_rows=settings.shuffle_rows,
            skip=skip,
        )

    return endless(epoch, rows_of(config, steps) // settings.batch_size)


def loop_of(
    config: Config, stream: Callable[[int], Iterator[Batch]], names: list[str], checkpoints: str, steps: int
) -> Loop:
    """The loop of a training of `steps` steps, before its first one."""
    place = Place()
    torch.manual_seed(0)
    task = GeneratorTask(config, Autoencoder(config.tokenizer), stream, steps, class_names=names, device=place.device)
    return loops.loop_of(task, config.train, config, steps, checkpoints=checkpoints, place=place)


def rows_of(config: Config, steps: int) -> int:
    """Rows of the token set: whole units, an epoch at least as long as the profile."""
    unit = config.data.unit_images
    return -(-steps * config.train.batch_size // unit) * unit


# ---- the measurement ----


@dataclass
class Measured:
    """Seconds per step."""

    plain: float  # as it is, the least of the rounds
    profiled: float  # under the profiler, the least of the rounds; the following are of the same round
    tensors: float  # self time of tensor operations
    parts: dict[str, float]


def steps_of(rounds: int, steps: int) -> int:
    """The steps of a training that is profiled for some rounds: one more than are made, so that none is the last."""
    return WARM + 2 * steps * rounds + 1


def measure(loop: Loop, stream: Iterator[Batch], steps: int, rounds: int) -> Measured:
    """Alternate `steps` steps as they are with as many under the profiler, for some rounds."""
    for module in loop.task.modules.values():
        module.train()
    loop.steps(range(WARM), stream)
    rows = []
    for number in range(rounds):
        first = WARM + 2 * number * steps
        start = time.perf_counter()
        loop.steps(range(first, first + steps), stream)
        plain = time.perf_counter() - start
        rows.append({"plain": plain} | profiled_steps(loop, stream, range(first + steps, first + 2 * steps)))
    quickest = min(rows, key=lambda row: row["profiled"])
    return Measured(
        plain=min(row["plain"] for row in rows) / steps,
        profiled=quickest["profiled"] / steps,
        tensors=quickest["tensors"] / steps,
        parts={part: quickest[part] / steps for part in PARTS},
    )


def profiled_steps(loop: Loop, stream: Iterator[Batch], steps: range) -> dict[str, float]:
    """Seconds of some steps under the profiler: `profiled` of all, `tensors` of tensor operations, and of each part."""
    methods = {name: getattr(loop, name) for name in PARTS.values()}
    for part, name in PARTS.items():
        setattr(loop, name, marked(part, methods[name]))
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        start = time.perf_counter()
        loop.steps(steps, stream)
        seconds = time.perf_counter() - start
    for name in methods:
        delattr(loop, name)  # the class's own method is behind it
    events = profiler.events() or []
    thread = next(event.thread for event in events if event.name == "forward")
    row = {"profiled": seconds} | dict.fromkeys(("tensors", *PARTS), 0.0)
    for event in events:
        if event.thread != thread:
            continue
        if event.name in PARTS:
            row[event.name] += event.time_range.elapsed_us() / 1e6
        elif event.name.startswith("aten::"):
            row["tensors"] += event.self_cpu_time_total / 1e6
    return row


def marked(part: str, method: Callable[..., Any]) -> Callable[..., Any]:
    """A method whose calls the profiler lists under the name of a part."""

    def call(*arguments: Any) -> Any:
        with record_function(part):
            return method(*arguments)

    return call


def table(measured: Measured) -> str:
    """The parts of a step and its host time as a table in Markdown."""
    lines = ["| part of a step | ms | share |", "| --- | --- | --- |"]
    rest = measured.profiled - sum(measured.parts.values())
    for name, seconds in [*measured.parts.items(), ("the rest", rest)]:
        lines.append(f"| {name} | {1000 * seconds:.2f} | {seconds / measured.profiled:.2%} |")
    for name, seconds in (("as it is", measured.plain), ("under the profiler, an upper bound", measured.profiled)):
        host = seconds - measured.tensors
        lines.append(f"| host time {name} | {1000 * host:.2f} | {host / seconds:.2%} |")
    return "\n".join(lines)


def checkpoint_seconds(loop: Loop) -> tuple[float, float]:
    """For how long a checkpoint stops the training, as each one does but the first, and until it is written."""
    loop.checkpoint(loop.settings.total_steps, math.nan)
    loop.written()
    start = time.perf_counter()
    loop.checkpoint(loop.settings.total_steps, math.nan)
    stopped = time.perf_counter() - start
    loop.written()
    return stopped, time.perf_counter() - start


def main() -> None:
    """Profile the training of a configuration, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config", default="conf/fashion_mnist.yaml")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=5, help="of a round, as they are and under the profiler each")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_intermixed_args()
    config = configuration.load(arguments.config, arguments.overrides)
    total = steps_of(arguments.rounds, arguments.steps)
    with tempfile.TemporaryDirectory() as folder:
        names = write_tokens(config, f"{folder}/tokens", rows_of(config, total))
        start_ray(config.cluster)
        torch.set_num_threads(arguments.threads)
        batches = token_stream(config, f"{folder}/tokens", total)
        loop = loop_of(config, batches, names, f"{folder}/checkpoints", total)
        stream = Prefetch(loop.task.batches(0))
        try:
            measured = measure(loop, stream, arguments.steps, arguments.rounds)
        finally:
            stream.close()
        stopped, written = checkpoint_seconds(loop)
    print(
        f"\n{arguments.config} {' '.join(arguments.overrides)}, {arguments.threads} threads, "
        f"{platform.processor() or platform.machine()}, torch {torch.__version__}, {date.today()}: "
        f"{1000 * measured.plain:.1f} ms a step of {config.train.batch_size} images, "
        f"{1000 * measured.profiled:.1f} ms under the profiler\n\n{table(measured)}"
    )
    every = config.train.checkpoint_every
    share = stopped / (every * measured.plain)
    print(
        f"\na checkpoint stops the training for {stopped:.3f} s, {share:.3%} of {every} steps "
        f"(train.checkpoint_every), and is written in {written:.2f} s"
    )


if __name__ == "__main__":
    main()
