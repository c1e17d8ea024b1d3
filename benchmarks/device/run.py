"""Measures parts in order within a budget; prints and writes each figure as it comes, then the aims and the gaps."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks import report
from benchmarks.common import say, text
from benchmarks.device import aims, parts
from benchmarks.device.clock import Measured, OutOfTime, Work, at_most, ceiling_of, free, measure
from benchmarks.device.ours import Setup, set_stance
from nvg.errors import NvgError

LEAST_SECONDS = 5.0  # for which no part is started
FILES = ("device.json", "device.md")


@dataclass
class Run:
    """The measurements of one call, and where they are written."""

    setup: Setup
    output: Path
    deadline: float  # of time.monotonic()
    machine: dict[str, Any]
    ceiling: float = 0.0
    measured: list[Measured] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)  # part -> why
    failed: bool = False  # a part raised an error that nobody foresaw

    @property
    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()

    def parts(self, names: Sequence[str]) -> None:
        """Measure parts in this order. Each may take half of the time that is left, the last one all of it."""
        print(f"{self.where()}\n\n" + "\n".join(table_head()), flush=True)
        for number, name in enumerate(names):
            share = self.left if number == len(names) - 1 else self.left / 2
            if share < LEAST_SECONDS:
                self.left_out[name] = f"no time was left: give more --minutes, or --only {name}"
            else:
                self.part(name, share)
            self.write()

    def part(self, name: str, seconds: float) -> None:
        """Measure one part; whatever keeps it from its end is written down, and the next one gets its turn."""
        say(f"{name}: {seconds:.0f} s at most")
        before = len(self.measured)
        try:
            parts.check(name, self.setup)
            with at_most(seconds):
                self.works(name)
        except OutOfTime:
            done = len(self.measured) - before
            self.left_out[name] = f"stopped after {seconds:.0f} s and {done} rows: --only {name} gives it all --minutes"
        except (NvgError, ImportError, torch.OutOfMemoryError) as error:
            self.left_out[name] = " ".join(str(error).split())
        except Exception as error:  # of one part: the others are measured all the same, and the exit code tells
            traceback.print_exc()
            self.failed = True
            self.left_out[name] = f"failed: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        torch.compiler.reset()
        free(self.setup.device)

    def works(self, name: str) -> None:
        """Measure the works of a part."""
        for work in parts.PARTS[name](self.setup):
            one = measure(work, self.setup.device, self.ceiling) if isinstance(work, Work) else work
            self.measured.append(one)
            print(line(one), flush=True)
            self.write()

    # ---- what is written ----

    def where(self) -> str:
        """One line on the machine."""
        on = self.machine
        return (
            f"{on['device']}, torch {on['torch']}, commit {on['commit']}, {on['date']}, size {on['size']}; a matrix "
            f"product runs at {self.ceiling / 1e12:.3g} TFLOP/s."
        )

    def aims(self) -> list[dict[str, str]]:
        """The lines of the aims, which are of d16 on a GPU."""
        return aims.lines(self.measured, judged=self.setup.full and self.setup.device.type == "cuda")

    def closing(self) -> str:
        """The aims and what was left out, as Markdown."""
        rows = [list(row.values()) for row in self.aims()]
        blocks = [grid(["aim", "one H200, 2026-11-26", "measured", "bound", "verdict"], rows)]
        if self.left_out:
            blocks.append(grid(["left out", "why"], [[name, why] for name, why in self.left_out.items()]))
        return "\n\n".join(blocks)

    def write(self) -> None:
        """Write all that is known so far."""
        self.output.mkdir(parents=True, exist_ok=True)
        data = {
            "machine": self.machine,
            "ceiling_tflops": self.ceiling / 1e12,
            "rows": [asdict(one) for one in self.measured],
            "aims": self.aims(),
            "left_out": self.left_out,
        }
        page = [self.where(), "\n".join([*table_head(), *map(line, self.measured)]), self.closing()]
        for name, content in zip(FILES, (json.dumps(data, indent=1), "\n\n".join(page) + "\n"), strict=True):
            unfinished = self.output / f".{name}"
            unfinished.write_text(content)
            unfinished.replace(self.output / name)


def table_head() -> list[str]:
    """The first two lines of the table of figures."""
    columns = list(Measured("", "", 1, 1.0, 1, 1.0, None, 1.0).row.values)
    return ["| | " + " | ".join(columns) + " |", "| --- " * (len(columns) + 1) + "|"]


def line(one: Measured) -> str:
    """A line of the table of figures."""
    return f"| {one.row.case} | " + " | ".join(text(value) for value in one.row.values.values()) + " |"


def grid(columns: list[str], rows: list[list[str]]) -> str:
    """A table of texts."""
    lines = ["| " + " | ".join(columns) + " |", "| --- " * len(columns) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def run(names: Sequence[str], device: str, *, full: bool, minutes: float, var: Path | None, output: Path) -> int:
    """Measure the parts; returns the exit code: 1 where one failed. What was left out is no failure."""
    deadline = time.monotonic() + 60 * minutes
    setup = Setup(torch.device(device), full, var)
    set_stance(setup)
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    facts = report.machine("full" if full else "smoke", torch.get_num_threads())
    run = Run(setup, output, deadline, {"device": name, "minutes": minutes, "cuda": torch.version.cuda} | facts)
    run.ceiling = ceiling_of(setup.device, size=8192 if device == "cuda" else 512)
    try:
        run.parts([part for part in names if part in parts.PARTS])
        for section in parts.NEEDS_RAY:
            run.left_out[section] = f"needs Ray and measures no device: python -m benchmarks --only {section}"
        run.write()
    finally:
        torch.compiler.set_stance("default")
    print(f"\n{run.closing()}\n\nwritten to {output / FILES[0]} and {FILES[1]}", flush=True)
    return int(run.failed)
