"""Floating-point operations of a batch of images, by schedule and part. Exact, on any machine: nothing is computed.

The schedules are those of `benchmarks/schedules.py`, with generators of position tokens and "of clusters". Each runs
its whole course with networks on torch's meta device, and every pass that it asks for is counted by torch's own
counter, at the number of rows that it asks for: TFLOP, a multiply-add being two, of matrix products, convolutions and
attention, for the whole batch. "of the paper's": against the paper's schedule at the same depth and batch. The decoder
takes its canvases in fours, so a batch of one decodes four (`nvg/generator/sampler.py`, `in_fours`).
"""

from __future__ import annotations

from benchmarks.common import TableRow
from benchmarks.schedules import BATCHES, DEPTHS, PARTS, SCHEDULES, operations


def run(size: str) -> list[TableRow]:
    """The rows of every depth, batch and schedule. smoke: the tests' configuration, and one image of d16, whose ratios
    have aims."""
    cases = [(depth, images) for depth in DEPTHS for images in BATCHES]
    if size != "full":
        cases = [("smoke", images) for images in BATCHES] + [("d16", BATCHES[0])]
    return [row for depth, images in cases for row in _schedules(depth, images)]


def _schedules(depth: str, images: int) -> list[TableRow]:
    cases = {schedule: operations(depth, schedule, images) for schedule in SCHEDULES}
    cases |= {
        f"{schedule} of clusters": operations(depth, schedule, images, "clusters")
        for schedule in SCHEDULES
        if schedule != "paper"
    }
    rows = []
    for case, count in cases.items():
        total = sum(count.values())
        values = {part: count[part] / 1e12 for part in PARTS} | {
            "TFLOP": total / 1e12,
            "of the paper's, %": 100 * total / sum(cases["paper"].values()),
            "structure, %": 100 * count["structure"] / total,
        }
        rows.append(TableRow(f"{depth}, batch {images}, {case}", values))
    return rows
