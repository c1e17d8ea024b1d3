"""nvg/console.py without Ray: what is said in which process, how a driver shows it, bars."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from nvg import console
from nvg.console import MARK, duration, progress, say

ROOT = Path(__file__).parents[1]


def sent(lines, pid=7, error=False):
    """Lines of a process, as Ray's driver collects them."""
    return {"lines": lines, "pid": pid, "ip": "1.2.3.4", "localhost": "1.2.3.4", "job": "01", "is_err": error}


@pytest.mark.parametrize("error", [False, True])
def test_a_driver_shows_what_is_said_and_no_notice(monkeypatch, capsys, error):
    monkeypatch.setenv(console.TERMINAL, "0")
    say("tokens: 3 of 5 units\nand a second line", error=error)
    out, err = capsys.readouterr()
    assert (out if error else err) == ""
    lines = (err if error else out).splitlines()
    assert all(line.startswith(MARK) for line in lines)
    noise = ["INFO mlflow: made a table", "UserWarning: Grad strides do not match bucket view strides"]
    console._show(sent([noise[0], *lines, noise[1]], error=error))
    shown = capsys.readouterr()
    assert (shown.err if error else shown.out) == "tokens: 3 of 5 units\nand a second line\n"
    assert (shown.out if error else shown.err) == ""
    monkeypatch.setenv(console.VERBOSE, "1")
    console._show(sent([noise[0], *lines, noise[1]], error=error))
    shown = capsys.readouterr()
    text = shown.err if error else shown.out
    assert all(line in text for line in noise) and MARK not in text and "\ntokens: 3 of" in f"\n{text}"


@pytest.mark.parametrize(
    "usual",
    [
        "WARNING: 8 PYTHON worker processes have been started on node: 1172cf",
        "Task ServeController.graceful_shutdown failed. There are infinite retries remaining",
        "Traceback (most recent call last):",
        '  File "default_worker.py", line 241, in <module>',
        "RuntimeError: b'RPC error: Deadline Exceeded'",
    ],
)
def test_a_nodes_own_process_is_heard_but_for_notices_of_what_is_usual(capsys, usual):
    line = "The node's memory is 95% full: workers will be killed"
    console._show(sent([line, usual], pid="raylet"))
    said = capsys.readouterr().out
    assert line in said and usual not in said


def test_all_ways_of_ray_to_the_drivers_output_are_listened_to(monkeypatch, capsys):
    from ray._private import worker
    from ray._private.ray_logging import global_worker_stdstream_dispatcher as dispatcher

    monkeypatch.setattr(worker, "print_to_stdstream", worker.print_to_stdstream)
    monkeypatch.setattr(dispatcher, "handlers", [("ray_print_logs", print)])
    monkeypatch.setattr(console, "_listens", threading.Event())
    console.listen()
    console.listen()
    dispatcher.emit(sent(["noise", MARK + "a line"]))
    usual = "WARNING: 8 PYTHON worker processes have been started on node: 1172cf"
    worker.print_to_stdstream({"lines": [usual], "pid": "raylet", "is_err": False}, ignore_prefix=False)
    assert capsys.readouterr().out == "a line\n"


def test_lines_of_a_step_are_shown_before_its_end(monkeypatch, capsys):
    monkeypatch.setenv(console.TERMINAL, "0")
    monkeypatch.setattr(console, "_listens", threading.Event())
    start = time.monotonic()
    console.wait_for_end("tokens")
    assert time.monotonic() - start < 1  # nobody would show a line
    console._listens.set()
    say("tokens: 60 images")
    console.end("tokens")
    lines = capsys.readouterr().out.splitlines()
    threading.Timer(0.2, console._show, [sent(lines)]).start()
    console.wait_for_end("tokens")
    assert capsys.readouterr().out == "tokens: 60 images\n"
    start = time.monotonic()
    console.wait_for_end("tokens", seconds=0.3)  # a process that was killed tells nothing
    assert 0.2 < time.monotonic() - start < 3


def test_what_is_said_outside_of_ray_is_said_as_it_is(monkeypatch, capsys):
    monkeypatch.delenv(console.TERMINAL, raising=False)
    say("one line")
    assert capsys.readouterr().out == "one line\n"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (99, "99 s"), (100, "2 min"), (5_000, "83 min"), (7_500, "2 h 5 min")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_a_bar_without_ray_is_on_standard_error():
    lines = ["from nvg.console import progress", "bar = progress(2, 'a job')", "bar.update()"]
    lines += ["bar.set_description('loss 1')", "bar.close()"]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        cwd=ROOT,
        env=os.environ | {"NVG_TERMINAL": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "" and "loss 1" in done.stderr and "1/2" in done.stderr


@pytest.fixture
def clock(monkeypatch):
    """No terminal, and seconds that a test moves."""
    now = [0.0]
    monkeypatch.setattr(console, "on_terminal", lambda: False)
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_where_no_terminal_is_there_is_a_line_every_half_a_minute_and_at_the_end(clock, capsys):
    bar = progress(1000, "a job")
    for step in range(1000):
        clock[0] += 1.0 if step < 50 else 0.1
        if step == 40:
            bar.set_description("a job  loss 2.5")
        bar.update()
    bar.close()
    bar.close()
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "a job: 31 of 1,000 steps (3%), 1 a second, 16 min left"
    assert said[1].startswith("a job  loss 2.5: ")
    assert len(said) == 5 and "(100%)" in said[-1] and not any("\r" in line or "\x1b" in line for line in said)


def test_a_job_that_has_done_nothing_yet_says_so_after_half_a_minute(clock, capsys):
    for total in (5, 0):
        bar = progress(total, "a job", "part")
        clock[0] += 31.0
        bar.update(0)
        bar.close()
    assert capsys.readouterr().err == "a job: 0 of 5 parts\na job: 0 of 0 parts\n"


def test_a_job_that_ends_early_says_how_far_it_came(clock, capsys):
    bar = progress(100, "a job", "image")
    bar.update(4)
    bar.close()
    bar.close()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("a job: 4 of 100 images (4%), ")
