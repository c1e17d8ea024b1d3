"""One job an artifact: a lease beside its folder, `<folder>.lease`, that the job renews for as long as it lives.

The file names the job's machine and process. A second job on the same artifact refuses while the first one lives; of a
first one that was killed it takes over: at once where the process can be looked up (the same machine), else when no
renewal came for SILENCE seconds. Clocks are not compared, so machines need not agree on the time.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import psutil

from nvg import storage
from nvg.console import say
from nvg.errors import OutputBusy

BEAT = 5.0  # seconds between renewals
SILENCE = 30.0  # seconds without one after which a job elsewhere counts as dead


@contextmanager
def lease(folder: str) -> Iterator[None]:
    """Hold the lease of a folder (path or URL) during a block. Raises OutputBusy where another job has it."""
    path = f"{folder.rstrip('/')}.lease"
    own = {
        "id": uuid.uuid4().hex,
        "machine": _machine(),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "born": psutil.Process().create_time(),
        "since": datetime.now().astimezone().isoformat(timespec="seconds"),
    }
    _take(path, own, folder)
    done = threading.Event()
    thread = threading.Thread(target=_renew, args=(path, own, done), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        if _read(path).get("id") == own["id"]:
            storage.remove(path)


def left_over(folder: str) -> bool:
    """Whether a folder has a lease: of a job at work, or of one that was killed."""
    return storage.exists(f"{folder.rstrip('/')}.lease")


def _take(path: str, own: dict[str, Any], folder: str) -> None:
    """Make the file. It is created or fails as one, on a disk and on S3 (If-None-Match), so two cannot both make it."""
    while True:
        try:
            return storage.create_bytes(path, json.dumps(own).encode())
        except FileExistsError:
            other = _read(path)
        if not other:  # being written just now, or cut off by a full disk
            time.sleep(1)
            other = _read(path)
        if other and _alive(path, other):
            raise OutputBusy(
                f"{folder} is being made by another job (process {other['pid']} on {other['host']}, since "
                f"{other['since']}): wait for it, stop it, or give another output"
            )
        if _read(path) == other:  # no third job has taken it over meanwhile
            storage.remove(path)


def _alive(path: str, other: dict[str, Any]) -> bool:
    """Whether the job of a lease still runs."""
    if other["machine"] == _machine():
        try:
            return psutil.Process(other["pid"]).create_time() == other["born"]
        except psutil.NoSuchProcess:
            return False
    say(f"waiting up to {SILENCE:.0f} s: does the job on {other['host']} that has {path} live?")
    end = time.monotonic() + SILENCE
    while time.monotonic() < end:
        time.sleep(min(1.0, SILENCE / 5))
        if _read(path) != other:
            return storage.exists(path)
    return False


def _renew(path: str, own: dict[str, Any], done: threading.Event) -> None:
    """Renew until `done`. A job that slept so long that another one took over ends itself."""
    beat = 0
    while not done.wait(BEAT):
        beat += 1
        try:
            now = _read(path)
            if now and now["id"] != own["id"]:
                say(f"error: {path} was taken over by process {now['pid']} on {now['host']}", error=True)
                # The main thread may be asleep in a wait. What a script put into the background ignores SIGINT.
                deaf = signal.getsignal(signal.SIGINT) in (signal.SIG_IGN, None)
                return os.kill(os.getpid(), signal.SIGTERM if deaf else signal.SIGINT)
            storage.write_json(path, own | {"beat": beat})
        except OSError:
            continue  # a store that fails for a while, or a full disk: the job itself will tell


def _read(path: str) -> dict[str, Any]:
    """What a lease says; {} where it is gone or being written."""
    try:
        return storage.read_json(path)
    except (FileNotFoundError, ValueError):
        return {}


def _machine() -> str:
    """This boot of this machine, and this space of process numbers: containers have their own."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read().strip() + os.readlink("/proc/self/ns/pid")
    except OSError:  # not Linux
        return f"{socket.gethostname()} {uuid.getnode()}"
