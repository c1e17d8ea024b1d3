"""The benchmark suite: every section in one run; JSON, Markdown tables and plots.

    python -m benchmarks [--size smoke|full] [--only sampler,peers] [--threads 2] [--output runs/benchmarks] \\
        [--doc docs/reports/benchmarks.md]

docs/reports/benchmarks_parts.md has the places of the other sections.

A section is one file in this folder: its docstring says what is measured, run(size) gives rows, and plot(rows, path)
draws them where there is something to see. full takes 40 minutes on two cores, smoke one or two.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import os
import time
from collections.abc import Sequence
from pathlib import Path

SECTIONS = ("operations", "sampler", "peers", "granularity", "training", "reading", "serving")


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print and write. argv: the command line without the program."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=("smoke", "full"), default="smoke")
    parser.add_argument("--only", help="sections, separated by commas; default: all", default=",".join(SECTIONS))
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="torch threads")
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument("--doc", type=Path, help="replace the tables of this page, and its plots in ../figures/")
    arguments = parser.parse_args(argv)
    names = arguments.only.split(",")
    if unknown := sorted(set(names) - set(SECTIONS)):
        parser.error(f"no section {', '.join(unknown)}; there are {', '.join(SECTIONS)}")

    import torch

    from benchmarks import report

    if arguments.doc and (missing := [name for name in names if not report.has_place(arguments.doc.read_text(), name)]):
        parser.error(f"{arguments.doc} has no place for {', '.join(missing)}: choose its sections with --only")
    machine = report.machine(arguments.size, arguments.threads)  # now: the commit may change meanwhile
    results = []
    for name in names:
        torch.set_num_threads(arguments.threads)  # the load test sets another number
        section = importlib.import_module(f"benchmarks.{name}")
        start = time.perf_counter()
        rows = section.run(arguments.size)
        result = report.Result(section, rows, time.perf_counter() - start, machine)
        results.append(result)
        print(f"\n## {name}\n\n{report.markdown(result, '')}", flush=True)
        report.write(results, arguments.output)
        if arguments.doc:
            report.write_page([result], arguments.output, arguments.doc)
        gc.collect()


if __name__ == "__main__":
    main()
