"""Where does a training step of the generators go? The parts of a step as shares, and what of it is host time.

    python -m benchmarks.step_profile [--config conf/fashion_mnist.yaml] [--threads 1] [--steps 5] [--rounds 10] key=value
    python -m benchmarks.step_profile --config conf/imagenet_d16.yaml --steps 1 --rounds 2 \
        content.depth=12 structure.depth=12 train.batch_size=4 repa.weights=null cluster.num_workers=1 \
        data.unit_images=64 train.shuffle_rows=64                                   # d12, 4 images of its batch

The loop, the task, the token stream and Ray Data are those of pipelines/train.py; weights are random, and so are the
tokens, written as token Parquet into a temporary folder. In every round --steps steps as they are, for their time, and
as many under torch's profiler, for their parts; figures are of the quickest round, which other work disturbed least.

Host time is what the calling thread does outside of tensor operations: the time of a step as it is, less the self time
of all aten operations on that thread under the profiler. So it is Python, autograd's bookkeeping and waiting for data.
The time under the profiler less the same is an upper bound: it has the profiler's own work in it.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from nvg import config as configuration
from nvg.autoencoder import Autoencoder
from nvg.cluster import start_ray
from nvg.config import Config
from nvg.data import token_batches
from nvg.data.tokens import TokenFormat, finish, part_name, write_part
from nvg.training.generator_task import GeneratorTask
from nvg.training.jobs import endless
from nvg.training.loop import Batch, Loop, Place, Settings
from nvg.training.prefetch import Prefetch

PARTS = ("data", "move", "rates", "seeds", "forward", "backward", "clip", "optimizer", "average", "record")
WARM = 2  # steps before anything is measured


def write_tokens(config: Config, folder: str, rows: int) -> list[str]:
    """A finished token set of random tokens; returns its class names."""
    random = np.random.default_rng(0)
    sizes, units = config.tokenizer, -(-rows // config.data.unit_images)
    names = [str(number) for number in range(config.data.num_classes)]
    form = TokenFormat("random", sizes.last_stage, sizes.positions, sizes.codebook_size, names)
    for unit in range(units):
        count = config.data.unit_images
        columns = {
            "image_id": [f"{unit}-{number}" for number in range(count)],
            "label": random.integers(0, len(names), count),
            "content": random.integers(0, sizes.codebook_size, (count, 2 * sizes.positions - 1)),
            "structure": random.permuted(np.tile(np.arange(sizes.positions), (count, 1)), axis=1),
        }
        write_part(folder, form, part_name(unit, 0), 0, columns, [])
    finish(folder, form, {(unit, 0) for unit in range(units)}, {"views": 1})
    return names


def loop_of(config: Config, tokens: str, names: list[str], checkpoints: str, steps: int) -> tuple[Loop, Prefetch]:
    """The loop of a training of `steps` steps before its first one, and its batches."""
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

    stream = endless(epoch, rows_of(config, steps) // settings.batch_size)
    place = Place()
    torch.manual_seed(0)
    task = GeneratorTask(config, Autoencoder(config.tokenizer), stream, steps, class_names=names, device=place.device)
    how = Settings(
        job="profile",
        total_steps=steps,
        batch_size=settings.batch_size,
        slices=settings.accumulate,
        clip_norm=settings.clip_norm,
        checkpoint_every=steps + 1,
        log_every=config.tracking.log_every,
        preview_every=0,
        precision=settings.precision,
        seed=config.seed,
        identity="profile",
    )
    return Loop(task, how, config, checkpoints, place, None, 0), Prefetch(task.batches(0))


def rows_of(config: Config, steps: int) -> int:
    """Rows of the token set: whole units, an epoch at least as long as the profile."""
    unit = config.data.unit_images
    return -(-steps * config.train.batch_size // unit) * unit


@dataclass
class Measured:
    """Seconds a step."""

    plain: float  # as it is, the least of the rounds
    profiled: float  # under the profiler, the least of the rounds; what follows is of the same round
    tensors: float  # self time of tensor operations
    parts: dict[str, float]


def measure(loop: Loop, stream: Prefetch, steps: int, rounds: int) -> Measured:
    """Rounds of so many steps as they are and so many under the profiler."""
    for module in loop.task.modules.values():
        module.train()
    loop.steps(range(WARM), stream, None)
    found = []
    for number in range(rounds):
        first = WARM + 2 * number * steps
        begun = time.perf_counter()
        loop.steps(range(first, first + steps), stream, None)
        plain = time.perf_counter() - begun
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            begun = time.perf_counter()
            loop.steps(range(first + steps, first + 2 * steps), stream, None)
            profiled = time.perf_counter() - begun
        events = profiler.events() or []
        thread = next(event.thread for event in events if event.name == "forward")
        mine = [event for event in events if event.thread == thread]
        row = {"plain": plain, "profiled": profiled} | dict.fromkeys(("tensors", *PARTS), 0.0)
        for event in mine:
            if event.name in PARTS:
                row[event.name] += event.time_range.elapsed_us() / 1e6
            elif event.name.startswith("aten::"):
                row["tensors"] += event.self_cpu_time_total / 1e6
        found.append(row)
    quick = min(found, key=lambda row: row["profiled"])
    return Measured(
        plain=min(row["plain"] for row in found) / steps,
        profiled=quick["profiled"] / steps,
        tensors=quick["tensors"] / steps,
        parts={name: quick[name] / steps for name in PARTS},
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config", default="conf/fashion_mnist.yaml")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=5, help="of a round, as they are and under the profiler each")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_intermixed_args()
    config = configuration.load(arguments.config, arguments.overrides)
    total = WARM + 2 * arguments.steps * arguments.rounds + 1  # one more than are made: no checkpoint at the end
    with tempfile.TemporaryDirectory() as folder:
        names = write_tokens(config, f"{folder}/tokens", rows_of(config, total))
        start_ray(config.cluster)
        torch.set_num_threads(arguments.threads)
        loop, stream = loop_of(config, f"{folder}/tokens", names, f"{folder}/checkpoints", total)
        try:
            found = measure(loop, stream, arguments.steps, arguments.rounds)
        finally:
            stream.close()
        begun = time.perf_counter()
        loop.checkpoint(total)
        checkpoint = time.perf_counter() - begun
    print(
        f"\n{arguments.config} {' '.join(arguments.overrides)}, {arguments.threads} threads, "
        f"{platform.processor() or platform.machine()}, torch {torch.__version__}, {date.today()}: "
        f"{1000 * found.plain:.1f} ms a step of {config.train.batch_size} images, "
        f"{1000 * found.profiled:.1f} ms under the profiler\n"
    )
    print("| part of a step | ms | share |\n| --- | --- | --- |")
    rest = found.profiled - sum(found.parts.values())
    for name, seconds in [*found.parts.items(), ("the rest", rest)]:
        print(f"| {name} | {1000 * seconds:.2f} | {seconds / found.profiled:.2%} |")
    for name, seconds in (("as it is", found.plain), ("under the profiler, an upper bound", found.profiled)):
        host = seconds - found.tensors
        print(f"| host time {name} | {1000 * host:.2f} | {host / seconds:.2%} |")
    every = config.train.checkpoint_every
    share = checkpoint / (every * found.plain)
    print(f"\na checkpoint: {checkpoint:.2f} s, {share:.2%} of {every} steps (train.checkpoint_every)")


if __name__ == "__main__":
    main()
