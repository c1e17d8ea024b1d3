"""Load on two replicas that are killed at random moments: no request may be lost, and no picture may differ.

    python -m tests.campaigns.load [--minutes 30] [--seed 0] [--clients 8]

`pipelines/serve.py` serves the shipped Fashion-MNIST sampler with two replicas and short queues. Clients ask one
request after another and try again as docs/guides/serve.md tells them to. Every 30 to 90 seconds a replica gets
SIGKILL; the seed draws the moments and the victims. In the first half the oldest replica is spared, so that its
memory is seen for that long. At the end every request must have been answered, and every picture must be bit-equal to
the one that this process draws from its seed. Every killed replica must have been replaced by one that answers, no
process may go on growing, and the job must end by SIGTERM. Ends with exit code 1 otherwise.
tests/cluster/test_serving.py is the short form, with one kill.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from statistics import median

import numpy as np
import psutil
import torch

import nvg
from tests.support.load import Load, wrong_pictures
from tests.support.processes import replicas
from tests.support.serve_job import ServeJob
from tests.support.waiting import until

# Short queues and small batches: the clients fill the queue of a replica that is left alone, and meet 429.
SETTINGS = ("min_replicas=2", "max_replicas=2", "cpus_per_replica=0.5", "max_batch=4", "max_queue=14", "max_images=3")
KINDS = {  # of processes, by what their command lines hold
    "replica": "ray::ServeReplica:nvg:sampler",
    "HAProxy": "haproxy -",
    "HAProxy's manager": "ray::HAProxyManager",
    "Serve's controller": "ray::ServeController",
    "raylet": "raylet/raylet",
    "GCS": "gcs/gcs_server",
    "job": "pipelines/serve.py",
}
SAMPLE = 5.0  # seconds between two looks at the memory
SETTLED = 300.0  # seconds of a series below which its growth says nothing
GROWTH = (1.05, 16.0)  # a factor and MB that the last quarter of a series may lie above its second one


class Memory(threading.Thread):
    """Looks at the resident memory of a job and of all that it has started, until `done`."""

    def __init__(self, job: psutil.Process) -> None:
        super().__init__(daemon=True)
        self.job, self.done = job, threading.Event()
        self.samples: list[dict[tuple[str, int], float]] = []  # MB by kind and process id

    def run(self) -> None:
        """Until `done`."""
        while not self.done.wait(SAMPLE):
            sample = {}
            for process in [self.job, *self.job.children(recursive=True)]:
                with suppress(psutil.Error):
                    command = " ".join(process.cmdline())
                    kind = next((kind for kind, part in KINDS.items() if part in command), None)
                    if kind:
                        sample[kind, process.pid] = process.memory_info().rss / 2**20
            self.samples.append(sample)

    def series(self, kind: str) -> list[float]:
        """MB over time: of the replica that lived longest, of all processes together of every other kind."""
        if kind != "replica":
            sums = [[size for (name, _), size in sample.items() if name == kind] for sample in self.samples]
            return [sum(sizes) for sizes in sums if sizes]
        lives: dict[int, list[float]] = {}
        for sample in self.samples:
            for (name, pid), size in sample.items():
                if name == kind:
                    lives.setdefault(pid, []).append(size)
        return max(lives.values(), key=len, default=[])


@dataclass
class Kill:
    """A replica that was killed, and the seconds until two replicas answered again."""

    victim: int
    back: float


def kill_replicas(job: ServeJob, load: Load, minutes: float, rng: random.Random) -> list[Kill]:
    """Kill a replica from time to time; returns when the minutes are over. AssertionError if one does not come back."""

    def answering() -> list[int]:
        return [pid for pid in replicas() if job.answered[pid]]

    until(lambda: len(answering()) == 2, "two replicas that answer")
    start, oldest = time.monotonic(), answering()[0]
    kills: list[Kill] = []
    while True:
        pause = rng.uniform(30, 90)
        half = 30 * minutes
        if time.monotonic() + pause - start > 60 * minutes:
            time.sleep(max(0.0, start + 60 * minutes - time.monotonic()))
            return kills
        time.sleep(pause)
        spared = oldest if time.monotonic() - start < half else None
        victim = rng.choice([pid for pid in sorted(answering()) if pid != spared])
        killed = time.monotonic()
        os.kill(victim, signal.SIGKILL)
        until(lambda: len({*answering()} - {victim}) == 2, f"two replicas again after the kill of {victim}")  # noqa: B023
        kills.append(Kill(victim, time.monotonic() - killed))
        print(
            f"{datetime.now():%H:%M:%S} two replicas answer, {kills[-1].back:.1f} s after {victim} was killed; ", end=""
        )
        print(f"{len(load.answers)} answers, {len(load.errors)} lost", flush=True)


def report(load: Load, kills: list[Kill], memory: Memory, seconds: float) -> list[str]:
    """Print the figures; returns what is wrong with them."""
    took = sorted(answer.seconds for answer in load.answers)
    quantiles = ", ".join(
        f"{name} {np.quantile(took, share):.2f} s"
        for name, share in (("median", 0.5), ("95%", 0.95), ("99%", 0.99), ("longest", 1))
    )
    images = sum(len(answer.pictures) for answer in load.answers)
    tried_again = [answer.retries for answer in load.answers if answer.retries]
    ends = sorted({*load.tries}, key=str)
    print(f"\n{len(load.answers)} requests of {images} images, {60 * len(load.answers) / seconds:.0f} a minute")
    print(f"tries: {', '.join(f'{load.tries.count(end)} {end}' for end in ends)}")
    print(f"requests that were tried again: {len(tried_again)}, at most {max(tried_again, default=0)} times")
    print(f"a request took: {quantiles}")
    if kills:
        back = [kill.back for kill in kills]
        print(f"{len(kills)} kills; two replicas again after {median(back):.1f} s, at most {max(back):.1f} s")
    print("\n| MB of | minutes | second quarter | last quarter | most |\n" + "| --- " * 5 + "|")
    faults = [f"lost: {error}" for error in load.errors]
    for kind in KINDS:
        sizes = memory.series(kind)
        early, late = (np.array_split(sizes, 4)[quarter] for quarter in (1, 3))
        if not len(early):
            faults.append(f"no process of the kind {kind} was seen")
            continue
        before, after = median(early), median(late)
        print(f"| {kind} | {SAMPLE * len(sizes) / 60:.1f} | {before:.0f} | {after:.0f} | {max(sizes):.0f} |")
        if SAMPLE * len(sizes) > SETTLED and after > GROWTH[0] * before + GROWTH[1]:
            faults.append(f"{kind} grew from {before:.0f} to {after:.0f} MB")
    return faults


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--clients", type=int, default=8)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # as a replica has
    faults, kills = [], []
    with ServeJob("--verbose", *SETTINGS) as job:
        memory = Memory(job.process)
        memory.start()
        start = time.monotonic()
        with Load(job.address, arguments.clients, arguments.seed) as load:
            try:
                kills = kill_replicas(job, load, arguments.minutes, random.Random(arguments.seed))
            except AssertionError as error:
                faults.append(str(error))
        seconds = time.monotonic() - start
        memory.done.set()
        memory.join()
        code = job.stop()
        if code != 0:
            faults.append(f"the job ended with {code} after SIGTERM: {''.join(job.lines[-5:])}")
    faults += report(load, kills, memory, seconds) + wrong_pictures(load.answers, nvg.load("fashion-mnist"))
    print(f"\n{datetime.now():%Y-%m-%d %H:%M}, seed {arguments.seed}:", "; ".join(faults) or "nothing lost, all equal")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    main()
