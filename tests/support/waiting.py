"""Waiting for what other threads and processes do, with an end."""

import contextlib
import threading
import time

PATIENCE = 240  # seconds


def until(condition, what):
    """The first true answer of a condition; AssertionError naming `what` when there is none in time."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        with contextlib.suppress(FileNotFoundError, ValueError):  # of a checkpoint that is just going
            if answer := condition():
                return answer
        time.sleep(0.05)
    raise AssertionError(f"waited {PATIENCE} s for {what}")


def in_thread(job):
    """Start a job; returns a function that waits for its result."""
    result = {}

    def run():
        try:
            result["value"] = job()
        except BaseException as error:
            result["error"] = error

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def wait():
        thread.join(PATIENCE)
        assert not thread.is_alive(), "the job does not end"
        if "error" in result:
            raise result["error"]
        return result["value"]

    return wait
