"""`python pipelines/serve.py` as a user starts it, in a process of its own, and which of its replicas answered: with
`--verbose`, which shows a line per request."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import suppress

import httpx
import psutil

from pipelines.serve import free_ports
from tests.support.smoke import ROOT

ANSWERED = re.compile(r"\(ServeReplica:nvg:sampler pid=(\d+)\).*\"route\": \"/v1/images/generations\", \"status\": 200")


class ServeJob:
    """The job that serves the shipped model, until the block ends. It is up when the block begins."""

    def __init__(self, *settings: str, **environment: str) -> None:
        (port,) = free_ports(1)
        self.address = f"http://127.0.0.1:{port}"
        self.lines: list[str] = []
        self.answered: Counter[int] = Counter()  # requests by the process id of the replica that drew them
        # Without the settings of this process's own Ray, and its proxy's ports.
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "NVG_"))}
        self.process = psutil.Popen(
            [sys.executable, "pipelines/serve.py", "--config", "conf/serving/fashion_mnist.yaml", f"port={port}"]
            + list(settings),
            cwd=ROOT,
            env=clean | {"RAY_DEDUP_LOGS": "0"} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            if found := ANSWERED.search(line):
                self.answered[int(found[1])] += 1
            else:
                self.lines.append(line)

    def __enter__(self) -> "ServeJob":
        until = time.monotonic() + 150
        while time.monotonic() < until and self.process.poll() is None:
            try:
                if httpx.get(f"{self.address}/readyz").status_code == 200:
                    return self
            except httpx.TransportError:
                time.sleep(0.5)
        self.__exit__()
        raise AssertionError("".join(self.lines))

    def stop(self) -> int:
        """Ask it to end (SIGTERM) and wait; returns its exit code."""
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(timeout=90)
        self._reader.join()
        return code

    def __exit__(self, *error: object) -> None:
        if self.process.poll() is None:
            family = [*self.process.children(recursive=True), self.process]
            for process in family:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(family, timeout=15)
        self._reader.join()
