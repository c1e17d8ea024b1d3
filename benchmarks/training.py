"""A training step of both generators, by depth and micro-batch: forward, backward and optimizer, float32.

Random tokens, all stages of an image, no alignment features (`benchmarks/step_time.py`, `generator_step`); generators
of position tokens, and "of clusters". seconds: the median of a step over `rounds`, after one that warms up. TFLOP:
counted over that first step. MB: resident memory at the peak of building and of the first step: weights, averages of
the optimizer, gradients and activations.
"""

from __future__ import annotations

import statistics

from benchmarks.common import TableRow, peak_memory, say, seconds
from benchmarks.schedules import FORMS, configured
from benchmarks.step_time import generator_step
from nvg.describe import flops


def run(size: str) -> list[TableRow]:
    """The rows of every depth and micro-batch."""
    cases = {"smoke": (1, 16)} | ({"d12": (1, 4), "d16": (1, 4)} if size == "full" else {})
    rounds = 3 if size == "full" else 1
    generator_step(configured("smoke", "cluster.num_workers=1"))()  # the first step of all loads code: 80 MB
    return [
        measure(depth, images, form, rounds) for depth, batches in cases.items() for images in batches for form in FORMS
    ]


def measure(depth: str, images: int, form: str, rounds: int) -> TableRow:
    """The row of one case alone: two models of d16 and their optimizers would not fit into memory together."""
    case = f"{depth}, micro-batch {images}" + (" of clusters" if form == "clusters" else "")
    say(f"training: {case}")
    config = configured(depth, f"train.batch_size={images}", "cluster.num_workers=1", form=form)

    def first():
        step = generator_step(config)
        return step, flops(step)

    (step, count), peak = peak_memory(first)
    each = statistics.median(seconds(step) for _ in range(rounds))
    values = {
        "TFLOP": count / 1e12,
        "rounds": rounds,
        "seconds": each,
        "images a second": images / each,
        "GFLOP a second": count / 1e9 / each,
        "MB at the peak": peak,
    }
    return TableRow(case, values)
