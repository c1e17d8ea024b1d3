"""The sampler's seconds and memory by depth, batch and part, against the paper's schedule.

The schedules are those of `benchmarks/schedules.py`, in turns. seconds: medians over `rounds`, of the whole batch;
structure, content and decode are the networks', rest is everything else (noise, sorting, halving, the quantizer's
convolutions). scaled: all Euler steps do the same work, so where it says "structure x 25" one step per stage was run
and its structure seconds multiplied; the row "all 25 steps" is not scaled, and shows whether that is right. MB:
resident memory at the peak above the loaded models, and the weights that the schedule needs.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common import TableRow, Value, in_turns, peak_memory, say, seconds, timed, weights_mb
from benchmarks.schedules import BATCHES, PAPER_STEPS, PARTS, SCHEDULES, build, configured, draw, operations, parts_of
from nvg.generator import Sampler

OF_PAPER = "of the paper's, %"


def clocked(sampler: Sampler, schedule: str, images: int, flow_steps: int) -> dict[str, float]:
    """Seconds of one batch by part, and of the rest."""
    with timed(parts_of(sampler)) as calls:
        total = seconds(lambda: draw(sampler, schedule, images, flow_steps))
    parts = {part: sum(values) for part, values in calls.items()}
    return parts | {"rest": total - sum(parts.values())}


def run(size: str) -> list[TableRow]:
    """The rows of every depth, batch and schedule. smoke: the tests' configuration alone, which takes seconds."""
    depths = ("smoke", "d12", "d16") if size == "full" else ("smoke",)
    return [row for depth in depths for images in BATCHES for row in compare(depth, images, size)]


def compare(depth: str, images: int, size: str) -> list[TableRow]:
    """The rows of a depth and batch: the three schedules in turns."""
    # A round of d16 takes a minute and a half at batch 1 and eight minutes at batch 8.
    rounds = 2 if size == "smoke" else 7 if depth == "smoke" else 2 if images == 1 else 1
    config, name = configured(depth), f"{depth}, batch {images}"
    say(f"sampler: {name}")
    samplers = {schedule: build(config, schedule) for schedule in SCHEDULES}

    def variant(schedule: str, flow_steps: int):
        return lambda: peak_memory(lambda: clocked(samplers[schedule], schedule, images, flow_steps))

    warmup = ["guided"] if rounds > 1 else []  # batch 8 comes after batch 1 of the same depth
    measured = in_turns({schedule: variant(schedule, 1) for schedule in SCHEDULES}, rounds, warmup=warmup)
    if depth == "smoke" or (depth, images) == ("d16", 1):
        say(f"sampler: {name}, all {PAPER_STEPS} steps")
        measured["paper, all 25 steps"] = [variant("paper", PAPER_STEPS)()]
    papers = sum(_medians(measured["paper"], PAPER_STEPS).values())
    rows = []
    for case, runs in measured.items():
        schedule, sampler = case.split(",")[0], samplers[case.split(",")[0]]
        scaled = case == "paper"
        parts = _medians(runs, PAPER_STEPS if scaled else 1)
        total = sum(parts.values())
        peaks = [peak for _, peak in runs if peak is not None]
        values: dict[str, Value] = {
            "TFLOP": sum(operations(depth, schedule, images).values()) / 1e12,
            "rounds": len(runs),
            "seconds": total,
            OF_PAPER: 100 * total / papers,
            **parts,
            "structure, %": 100 * parts["structure"] / total,
            "scaled": "structure x 25" if scaled else "no",
            "MB at the peak": max(peaks, default=None),
            "MB of weights": weights_mb(sampler.content, sampler.structure, sampler.tokenizer.decoder),
        }
        rows.append(TableRow(f"{name}, {case}", values))
    return rows


def _medians(runs: Sequence[tuple[dict[str, float], float | None]], structure: int) -> dict[str, float]:
    """The median seconds by part; structure: how often its seconds count."""
    middle = {part: statistics.median(parts[part] for parts, _ in runs) for part in (*PARTS, "rest")}
    return middle | {"structure": structure * middle["structure"]}


def plot(rows: Sequence[TableRow], path: Path) -> None:
    """Draw the seconds per image by part, of the largest depth that was timed."""
    from matplotlib import pyplot

    depth = rows[-1].case.split(",")[0]
    shown = [row for row in reversed(rows) if row.case.startswith(f"{depth},") and not row.case.endswith("steps")]
    figure, axes = pyplot.subplots(figsize=(9, 0.45 * len(shown) + 1.4), layout="constrained")
    colours = {"structure": "#c4561a", "content": "#1f5fa8", "decode": "#5a9a3c", "rest": "#999999"}
    for place, row in enumerate(shown):
        images = int(row.case.split(",")[1].split()[1])
        left = 0.0
        for part, colour in colours.items():
            width = float(row.values[part] or 0) / images
            hatch = "//" if part == "structure" and row.values["scaled"] != "no" else None
            axes.barh(place, width, left=left, color=colour, hatch=hatch, edgecolor="white", linewidth=0)
            left += width
        label = f"{left:.3g} s, {row.values[OF_PAPER]:.3g}%"
        axes.annotate(label, (left, place), (4, 0), textcoords="offset points", va="center", fontsize=9)
    axes.set_yticks(range(len(shown)), [row.case for row in shown])
    axes.legend([pyplot.Rectangle((0, 0), 1, 1, color=colour) for colour in colours.values()], colours, frameon=False)
    axes.margins(x=0.18)
    axes.set_xlabel("seconds an image (hatched: one Euler step run, times 25), and % of the paper's schedule")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
