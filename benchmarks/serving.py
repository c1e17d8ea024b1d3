"""The cost of HTTP: the shipped sampler called in process, and through Ray Serve on loopback, in one run.

The measurement is `benchmarks/load_test.py`, one torch thread on either side whatever `--threads` says: everything once
per round, so that changes of the machine's speed meet all. of in-process: the median over the rounds of images per
second against those drawn in process in that round, of one image for the single client and of whole batches for the
others. docs/reports/serving.md has a longer run.
"""

from __future__ import annotations

import statistics
from argparse import Namespace

from benchmarks.common import TableRow, Value, say
from benchmarks.load_test import Figures, parse, run_rounds, together

AGAINST = {"one": "single", "many": "whole", "singles": "whole"}


def run(size: str) -> list[TableRow]:
    """The rows of every kind of request."""
    settings = ["--batch", "16", "--seconds", "10", "--rounds", "5"]
    if size == "smoke":
        settings = ["--batch", "4", "--seconds", "1", "--rounds", "1"]
    arguments = parse(settings)
    say("serving")
    return rows_of(arguments, run_rounds(arguments))


def rows_of(arguments: Namespace, measured: dict[str, list[Figures]]) -> list[TableRow]:
    """The rows of the load test's measurements."""
    batch = arguments.batch
    names = {
        "way": "served, /healthz: the way alone",
        "single": "in process, 1 image",
        "one": "served, 1 image, one client",
        "whole": f"in process, {batch} images",
        "many": f"served, {batch} images a request, two clients",
        "singles": f"served, 1 image a request, {2 * batch} clients",
    }
    rows = []
    for name, case in names.items():
        figures = together(measured[name])
        ratio: Value = None
        if name in AGAINST:
            pairs = zip(measured[name], measured[AGAINST[name]], strict=True)
            ratio = 100 * statistics.median(one.images_per_second / other.images_per_second for one, other in pairs)
        values: dict[str, Value] = {
            "rounds": arguments.rounds,
            "calls": len(figures.seconds),
            "images a second": figures.images_per_second if name != "way" else None,
            "of in-process, %": ratio,
            "median, ms": 1000 * figures.median,
            "95%, ms": 1000 * statistics.quantiles(figures.seconds, n=20, method="inclusive")[18],
        }
        rows.append(TableRow(case, values))
    return rows
