"""The benchmark suite: every section in one run; JSON, Markdown tables and plots.

    python -m benchmarks [--size smoke|full] [--only sampler,peers] [--threads 2] [--output runs/benchmarks] \\
        [--doc docs/reports/benchmarks.md]
    python -m benchmarks --device cuda [--only sampling,var] [--minutes 5] [--var DIR]

docs/reports/benchmarks_parts.md has the places of the other sections.

A section is one file in this folder: its docstring says what is measured, run(size) gives rows, and plot(rows, path)
draws them where there is something to see. full takes 40 minutes on two cores, smoke one or two.

With --device the parts of benchmarks/device are measured in place of the sections: d16 on a GPU beside its peers.
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
    parser.add_argument("--size", choices=("smoke", "full"), help="default: smoke, with --device cuda full")
    parser.add_argument("--only", help="sections, or parts of --device, separated by commas; default: all")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="torch threads")
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument("--doc", type=Path, help="replace the tables of this page, and its plots in ../figures/")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="measure a device by benchmarks/device")
    parser.add_argument("--minutes", type=float, default=10.0, help="of --device, for all parts together (%(default)s)")
    parser.add_argument("--var", type=Path, metavar="DIR", help="of --device: a checkout of FoundationVision/VAR")
    arguments = parser.parse_args(argv)
    if arguments.device:
        return on_device(parser, arguments)
    size = arguments.size or "smoke"
    names = chosen(parser, arguments.only, SECTIONS, "section")

    import torch

    from benchmarks import report

    if arguments.doc and (missing := [name for name in names if not report.has_place(arguments.doc.read_text(), name)]):
        parser.error(f"{arguments.doc} has no place for {', '.join(missing)}: choose its sections with --only")
    machine = report.machine(size, arguments.threads)  # now: the commit may change meanwhile
    results = []
    for name in names:
        torch.set_num_threads(arguments.threads)  # the load test sets another number
        section = importlib.import_module(f"benchmarks.{name}")
        start = time.perf_counter()
        rows = section.run(size)
        result = report.Result(section, rows, time.perf_counter() - start, machine)
        results.append(result)
        print(f"\n## {name}\n\n{report.markdown(result, '')}", flush=True)
        report.write(results, arguments.output)
        if arguments.doc:
            report.write_page([result], arguments.output, arguments.doc)
        gc.collect()


def chosen(parser: argparse.ArgumentParser, only: str | None, known: Sequence[str], kind: str) -> list[str]:
    """The names of --only, or all."""
    names = only.split(",") if only else list(known)
    if unknown := sorted(set(names) - set(known)):
        parser.error(f"no {kind} {', '.join(unknown)}; there are {', '.join(known)}")
    return names


def on_device(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Measure the parts of benchmarks/device. Ends the program with 1 where one failed."""
    import torch

    from benchmarks.device import parts, run

    names = chosen(parser, arguments.only, list(parts.PARTS), "part")
    if arguments.doc:
        parser.error("--doc is of the sections: paste the tables that --device writes to --output")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no GPU here")
    torch.set_num_threads(arguments.threads)
    full = (arguments.size or ("full" if arguments.device == "cuda" else "smoke")) == "full"
    code = run.run(
        names, arguments.device, full=full, minutes=arguments.minutes, var=arguments.var, output=arguments.output
    )
    if code:
        raise SystemExit(code)


if __name__ == "__main__":
    main()
