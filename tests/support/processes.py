"""Processes of Ray, found and ended by their ids: no other Ray of the machine is touched."""

from contextlib import suppress

import psutil


def replicas():
    """Process ids of the replicas that run below this process."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if " ".join(process.cmdline()).startswith("ray::ServeReplica:nvg:sampler"):
                found.append(process.pid)
        except psutil.NoSuchProcess:
            continue
    return found


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
