"""How a change moved the sampler's speed: the shipped model drawn by two commits, in turns.

    python -m benchmarks.compare_commits BASE [HEAD] [--rounds 15] [--batch 1 16] [--flow-steps 0 25]

Each commit is unpacked into a temporary folder and draws in a process of its own, which keeps its model; the two take
turns within each round, so that changes of the machine's speed meet both. Prints medians, and that of the rounds'
ratios.

A commit is asked for `nvg.load("fashion-mnist")` and `generate(classes, seed=..., flow_steps=...)` alone, whatever its
layout; one from before the model shipped is refused. Both run in today's environment, with its torch.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
READY = "ready"
WORKER = f"""
import os, sys, time, nvg
assert os.path.abspath("nvg") == os.path.dirname(nvg.__file__), "the commit has no package nvg"
import torch
torch.set_num_threads(1)
sampler = nvg.load("fashion-mnist")
print("{READY}", flush=True)
for line in sys.stdin:
    batch, seed, steps = map(int, line.split())
    classes = [(seed + j) % 10 for j in range(batch)]
    start = time.perf_counter()
    sampler.generate(classes, seed=seed, **({{"flow_steps": steps}} if steps else {{}}))
    print(time.perf_counter() - start, flush=True)
"""


class Drawer:
    """A process that draws with the package as it was at a commit, unpacked into a folder."""

    def __init__(self, commit: str, folder: str) -> None:
        self.commit = commit
        archive = subprocess.run(["git", "archive", commit], cwd=ROOT, check=True, capture_output=True).stdout
        subprocess.run(["tar", "-x", "-C", folder], input=archive, check=True)
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": folder, "OMP_NUM_THREADS": "1"},
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def answer(self) -> str:
        """The next line of the process. Ends the program when there is none."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        if not line:
            needs = 'nvg.load("fashion-mnist") and generate(classes, seed=..., flow_steps=...)'
            sys.exit(f"error: commit {self.commit} cannot draw, see above; it needs {needs}")
        return line

    def seconds(self, batch: int, seed: int, steps: int) -> float:
        """The seconds of a batch."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{batch} {seed} {steps}\n")
        self.process.stdin.flush()
        return float(self.answer())


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("base", help="a commit")
    parser.add_argument("head", nargs="?", default="HEAD", help="another commit")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--flow-steps", type=int, nargs="+", default=[0, 25], help="0 = the model's setting")
    arguments = parser.parse_args()
    with contextlib.ExitStack() as stack:
        both = []
        for commit in (arguments.base, arguments.head):
            drawer = Drawer(commit, stack.enter_context(tempfile.TemporaryDirectory()))
            stack.callback(drawer.process.kill)
            assert drawer.answer() == READY
            both.append(drawer)
        print("| flow steps | batch | before, ms | after, ms | after / before |\n| --- | --- | --- | --- | --- |")
        for steps in arguments.flow_steps:
            for batch in arguments.batch:
                for drawer in both:
                    drawer.seconds(batch, 0, steps)  # a warm-up
                rounds = [[drawer.seconds(batch, seed, steps) for drawer in both] for seed in range(arguments.rounds)]
                before, after = (1000 * statistics.median(column) for column in zip(*rounds, strict=True))
                ratio = statistics.median(second / first for first, second in rounds)
                print(f"| {steps or 'default'} | {batch} | {before:.1f} | {after:.1f} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
