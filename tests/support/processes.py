"""Processes of Ray, found and ended by their ids: no other Ray of the machine is touched."""

from contextlib import suppress

import psutil


def processes_named(start):
    """Processes below this one whose command line begins so: Ray's workers are named after what they run."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if " ".join(process.cmdline()).startswith(start):
                found.append(process)
    return found


def replicas():
    """Process ids of the replicas that run below this process."""
    return [process.pid for process in processes_named("ray::ServeReplica:nvg:sampler")]


def end(head: psutil.Popen) -> None:
    """End a `ray start --block` and all that it has started: an autoscaler's nodes too."""
    if not head.is_running():
        return
    family = [head, *head.children(recursive=True)]
    head.terminate()
    psutil.wait_procs([head], timeout=5)
    for process in family:  # what it did not wait for
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(family, timeout=15)
