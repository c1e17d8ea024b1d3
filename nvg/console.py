"""What a job shows: its lines and bars, wherever in Ray its code runs.

Ray sends all that its processes write to the driver: notices of its own, of torch's and of MLflow's among it, which
nobody can act on. The driver shows the lines and bars of this module alone, with what the autoscaler and a node's own
process say. NVG_VERBOSE=1 (`--verbose`) shows everything; Ray's log files always have it. Errors come as exceptions.
"""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from typing import Any, Protocol

TERMINAL = "NVG_TERMINAL"  # in the environment of Ray's processes: 1 where the driver's output is a terminal, else 0
VERBOSE = "NVG_VERBOSE"
MARK = "\x1f"  # begins each line of this module in a process of Ray's; the driver takes it away
NODES = ("autoscaler", "raylet")  # whose lines are for an operator
NOTICE = re.compile(  # but for these
    "worker processes have been started"  # tasks of a part of a CPU are many
    r"|Task ServeController\."  # was asked of Ray Serve while it went
    r"|^(Traceback|  |RuntimeError: b'RPC error: Deadline)"  # a worker came up too late: Ray starts another one
)
_ended: set[str] = set()  # names that `end` has told this driver
_listens = threading.Event()  # whether `listen` was called in this process


def verbose() -> bool:
    """Whether a person asked for every notice."""
    return os.environ.get(VERBOSE, "0") not in ("", "0")


def say(line: str, *, error: bool = False) -> None:
    """Print a line (or several) for whoever started the job. error: on standard error."""
    mark = MARK if TERMINAL in os.environ else ""
    print("\n".join(mark + part for part in line.split("\n")), file=sys.stderr if error else sys.stdout, flush=True)


def listen() -> None:
    """Show, in the driver, what this module says in the processes of the running Ray, and nothing else of theirs."""
    from ray._private import worker
    from ray._private.ray_logging import global_worker_stdstream_dispatcher as dispatcher

    worker.print_to_stdstream = lambda data, ignore_prefix: _show(data)  # of a raylet's errors, which come another way
    dispatcher.remove_handler("ray_print_logs")  # which prints everything, with a prefix
    dispatcher.remove_handler("nvg")
    dispatcher.add_handler("nvg", _show)
    _listens.set()


def end(name: str) -> None:
    """Tell the driver that this process has said all of something: its lines come later than its result."""
    say(MARK + name)


def wait_for_end(name: str, seconds: float = 5.0) -> None:
    """Wait, in a driver that listens, until all that was said before `end(name)` is shown, at most so long."""
    last = time.monotonic() + seconds
    while _listens.is_set() and name not in _ended and time.monotonic() < last:
        time.sleep(0.05)
    _ended.discard(name)


def _show(data: dict[str, Any]) -> None:
    """Print what is to be seen of lines that Ray collected from one process."""
    from ray._private.worker import print_worker_logs
    from ray.experimental.tqdm_ray import RAY_TQDM_MAGIC

    ends = [line for line in data["lines"] if line.startswith(MARK + MARK)]
    own = [line for line in data["lines"] if line not in ends and (line.startswith(MARK) or RAY_TQDM_MAGIC in line)]
    rest = [line for line in data["lines"] if line not in ends and line not in own]
    sink = sys.stderr if data["is_err"] else sys.stdout
    print_worker_logs({**data, "lines": [line.removeprefix(MARK) for line in own]}, sink, ignore_prefix=True)
    if data.get("pid") in NODES and not verbose():
        rest = [line for line in rest if not NOTICE.search(line)]
    if data.get("pid") in NODES or verbose():
        print_worker_logs({**data, "lines": rest}, sink)
    _ended.update(line.removeprefix(MARK + MARK) for line in ends)


# ---- bars ----


class Bar(Protocol):
    """The part of tqdm's interface that this project uses."""

    def update(self, n: int = 1) -> Any: ...
    def set_description(self, desc: str) -> Any: ...
    def close(self) -> Any: ...


class ProgressLines:
    """Progress for a file or a log, on standard error: a line every 30 s, and one at the end."""

    SECONDS = 30.0

    def __init__(self, total: int, description: str, unit: str) -> None:
        self.total, self.description, self.unit = total, description, unit
        self.done, self.said = 0, 0
        self.start = self.time = time.monotonic()

    def update(self, n: int = 1) -> None:
        """So many more are done."""
        self.done += n
        if time.monotonic() - self.time > self.SECONDS:
            self._say()

    def set_description(self, desc: str) -> None:
        """What the next line begins with."""
        self.description = desc

    def close(self) -> None:
        """Say how far it came, where the last line did not."""
        if self.done > self.said:
            self._say()

    def _say(self) -> None:
        self.said, self.time = self.done, time.monotonic()
        line = f"{self.description}: {self.done:,} of {self.total:,} {self.unit}s"
        if self.done:
            rate = self.done / max(self.time - self.start, 1e-9)
            left = max(self.total - self.done, 0) / rate
            share = 100 * self.done // max(self.total, 1)
            rate_text = f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"
            line += f" ({share}%), {rate_text} a second, {duration(left)} left"
        say(line, error=True)


def duration(seconds: float) -> str:
    """Seconds as a person says them: 8 s, 4 min, 2 h 5 min."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def on_terminal() -> bool:
    """Whether a person's terminal shows this job's output: the driver tells its Ray's processes."""
    said = os.environ.get(TERMINAL)
    return sys.stderr.isatty() if said is None else said == "1"


def progress(total: int, description: str, unit: str = "step") -> Bar:
    """A progress bar with rate and time left: the driver draws it, wherever the job's code runs. Where its output is no
    terminal, a line now and then.

    Without a running Ray the bar is on this process's standard error.
    """
    if not on_terminal():
        return ProgressLines(total, description, unit)
    ray = sys.modules.get("ray")  # a process that never imported Ray is on no cluster
    if ray is None or not ray.is_initialized():
        from tqdm import tqdm

        return tqdm(total=total, desc=description, unit=unit, dynamic_ncols=True, file=sys.stderr)
    from ray.experimental import tqdm_ray

    bar: Bar = tqdm_ray.tqdm(total=total, desc=description, unit=unit)
    return bar
