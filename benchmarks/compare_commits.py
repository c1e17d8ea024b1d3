"""What a change did to the sampler's speed: the shipped model drawn by two commits, in turns.

    python -m benchmarks.compare_commits BASE [HEAD] [--rounds 15] [--batch 1 16] [--flow-steps 0 25]

Each commit is unpacked into a temporary folder and draws in a process of its own, which keeps its model; the two
take turns within each round, so that changes of the machine's speed meet both. Prints medians, and that of the rounds'
ratios.
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
WORKER = """
import sys, time, torch, nvg
torch.set_num_threads(1)
sampler = nvg.load("fashion-mnist")
for line in sys.stdin:
    batch, seed, steps = map(int, line.split())
    classes = [(seed + j) % 10 for j in range(batch)]
    begun = time.perf_counter()
    sampler.generate(classes, seed=seed, **({"flow_steps": steps} if steps else {}))
    print(time.perf_counter() - begun, flush=True)
"""


def start(commit: str, folder: str) -> subprocess.Popen:
    """A process that draws with the package as it was at a commit."""
    archive = subprocess.run(["git", "archive", commit], cwd=ROOT, check=True, capture_output=True).stdout
    subprocess.run(["tar", "-x", "-C", folder], input=archive, check=True)
    environment = os.environ | {"PYTHONPATH": folder, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", WORKER],
        cwd=folder,
        env=environment,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


def draw(process: subprocess.Popen, batch: int, seed: int, steps: int) -> float:
    """Seconds of a batch. Raises RuntimeError when the process has ended."""
    process.stdin.write(f"{batch} {seed} {steps}\n")
    process.stdin.flush()
    line = process.stdout.readline()
    if not line:
        raise RuntimeError("a drawing process has ended; its message is above")
    return float(line)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("base")
    parser.add_argument("head", nargs="?", default="HEAD")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--flow-steps", type=int, nargs="+", default=[0, 25], help="0 = the model's own setting")
    arguments = parser.parse_args()
    with contextlib.ExitStack() as stack:
        both = []
        for commit in (arguments.base, arguments.head):
            both.append(start(commit, stack.enter_context(tempfile.TemporaryDirectory())))
            stack.callback(both[-1].kill)
        print("| flow steps | batch | before, ms | after, ms | after / before |\n| --- | --- | --- | --- | --- |")
        for steps in arguments.flow_steps:
            for batch in arguments.batch:
                for process in both:
                    draw(process, batch, 0, steps)  # warm
                rounds = [[draw(process, batch, seed, steps) for process in both] for seed in range(arguments.rounds)]
                before, after = (1000 * statistics.median(column) for column in zip(*rounds, strict=True))
                ratio = statistics.median(second / first for first, second in rounds)
                print(f"| {steps or 'own'} | {batch} | {before:.1f} | {after:.1f} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
