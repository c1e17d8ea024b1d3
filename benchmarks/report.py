"""Results as JSON, Markdown and plots, and into a page between its markers."""

from __future__ import annotations

import inspect
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from types import ModuleType

from benchmarks.common import TableRow, text

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Result:
    """A section's rows, and the machine that they were measured on."""

    section: ModuleType
    rows: list[TableRow]
    seconds: float  # how long the section took
    machine: dict[str, str | int]

    @property
    def name(self) -> str:
        """The section's name."""
        return self.section.__name__.rpartition(".")[2]

    @property
    def figure(self) -> str | None:
        """The file name of the section's plot; None where it has none."""
        return f"benchmarks_{self.name}.png" if hasattr(self.section, "plot") else None


def machine(size: str, threads: int) -> dict[str, str | int]:
    """The facts that a reader needs to compare: machine, versions, date, commit."""
    import torch

    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    cpuinfo = Path("/proc/cpuinfo")
    models = [line for line in cpuinfo.read_text().splitlines() if "model name" in line] if cpuinfo.exists() else []
    return {
        "size": size,
        "processor": models[0].partition(":")[2].strip() if models else platform.processor() or platform.machine(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count() or 0,
        "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30),
        "threads": threads,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": str(date.today()),
        "commit": commit.stdout.strip() or "unknown",
    }


def table(rows: Sequence[TableRow]) -> str:
    """The rows as Markdown. Raises ValueError where rows of a section have different columns."""
    columns = list(rows[0].values)
    lines = ["| | " + " | ".join(columns) + " |", "| --- " * (len(columns) + 1) + "|"]
    for row in rows:
        if list(row.values) != columns:
            raise ValueError(f"{row.case} has columns {list(row.values)}, others of its section {columns}")
        lines.append(f"| {row.case} | " + " | ".join(text(value) for value in row.values.values()) + " |")
    return "\n".join(lines)


def markdown(result: Result, figures: str) -> str:
    """A section's table and plot, and the machine they were measured on. figures: the link's way to the plots."""
    on = result.machine
    where = (
        f"{on['processor']} ({on['instructions']}), {on['cores']} cores, {on['memory_gb']} GB; "
        f"{on['threads']} threads, torch {on['torch']}, commit {on['commit']}, {on['date']}; "
        f"{result.seconds:.0f} s in all."
    )
    blocks = [table(result.rows), where]
    if result.figure:
        blocks.append(f"![{result.name}]({figures}{result.figure})")
    return "\n\n".join(blocks)


def write(results: Sequence[Result], output: Path) -> None:
    """Write results.json and results.md of all sections measured so far, and the plot of the last one."""
    output.mkdir(parents=True, exist_ok=True)
    sections = {
        result.name: {
            "machine": result.machine,
            "seconds": result.seconds,
            "rows": [{"case": row.case, **row.values} for row in result.rows],
        }
        for result in results
    }
    (output / "results.json").write_text(json.dumps(sections, indent=1))
    if results[-1].figure:
        draw_plot(results[-1], output / results[-1].figure)
    pages = [f"## {result.name}\n\n{inspect.getdoc(result.section)}\n\n{markdown(result, '')}\n" for result in results]
    (output / "results.md").write_text("# Benchmarks\n\n" + "\n".join(pages))


def draw_plot(result: Result, path: Path) -> None:
    """Draw a section's plot."""
    import matplotlib

    matplotlib.use("Agg")
    result.section.plot(result.rows, path)


def markers(name: str) -> tuple[str, str]:
    """The lines of a page between which the table of a section stands."""
    return f"<!-- {name}: written by python -m benchmarks -->", f"<!-- end of {name} -->"


def has_place(content: str, name: str) -> bool:
    """Whether a page has a place for a section's table."""
    return all(marker in content for marker in markers(name))


def write_page(results: Sequence[Result], output: Path, page: Path) -> None:
    """Put tables between a page's markers and plots into figures/ next to its folder.

    Raises ValueError when a section has no markers there.
    """
    content = page.read_text()
    for result in results:
        begin, end = markers(result.name)
        if not has_place(content, result.name):
            raise ValueError(f"{page} has no lines {begin!r} and {end!r} around the place of its table")
        before, _, rest = content.partition(begin)
        content = f"{before}{begin}\n{markdown(result, '../figures/')}\n{end}{rest.partition(end)[2]}"
        if result.figure:
            figures = page.parent.parent / "figures"
            figures.mkdir(exist_ok=True)
            shutil.copyfile(output / result.figure, figures / result.figure)
    page.write_text(content)
