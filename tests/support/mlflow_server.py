"""A real MLflow server: PostgreSQL behind it, files in an S3 store. All are processes of their own on loopback."""

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from pipelines.serve import free_ports
from scripts.postgres import find

OWNER = "nobody"  # PostgreSQL refuses to run as root


@contextlib.contextmanager
def database():
    """A PostgreSQL server; gives the URL of an empty database."""
    programs = find()
    assert programs is not None, "no PostgreSQL: python scripts/postgres.py"
    folder = Path(tempfile.mkdtemp(prefix="nvg-postgres-"))
    root = os.geteuid() == 0
    if root:
        os.chown(folder, pwd.getpwnam(OWNER).pw_uid, -1)
    owner = {"user": OWNER} if root else {}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": folder}
    (port,) = free_ports(1)
    try:
        initialize = [programs / "initdb", "-D", folder / "data", "-A", "trust", "-U", "mlflow", "--no-sync"]
        subprocess.run(initialize, check=True, **quiet, **owner)
        serve = [programs / "postgres", "-D", folder / "data", "-p", str(port), "-k", folder, "-h", "127.0.0.1"]
        process = subprocess.Popen([*serve, "-c", "fsync=off"], **quiet, **owner)
        try:
            create = [programs / "createdb", "-h", "127.0.0.1", "-p", str(port), "-U", "mlflow", "mlflow"]
            wait(lambda: subprocess.run(create, **quiet).returncode == 0, process, "PostgreSQL")
            yield f"postgresql://mlflow@127.0.0.1:{port}/mlflow"
        finally:
            process.terminate()
            process.wait()
    finally:
        shutil.rmtree(folder)


@contextlib.contextmanager
def server(bucket):
    """An MLflow server whose runs are in PostgreSQL and whose files go, through it, to an S3 URL; gives its address."""
    with database() as url:
        (port,) = free_ports(1)
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
        command += ["--backend-store-uri", url, "--artifacts-destination", bucket, "--workers", "1"]
        # Its own jobs (nothing of ours) are seven processes that poll: on two cores they starve what is tested.
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        process = subprocess.Popen(command, start_new_session=True, env=environment)
        address = f"http://127.0.0.1:{port}"

        def answers():
            with contextlib.suppress(OSError):
                return urllib.request.urlopen(f"{address}/health", timeout=2).status == 200

        try:
            wait(answers, process, "MLflow")
            yield address
        finally:
            with contextlib.suppress(ProcessLookupError):  # it may have ended by itself
                os.killpg(process.pid, signal.SIGTERM)
            process.wait()


def wait(ready, process, what):
    """Until a server is ready; AssertionError where it ends or takes two minutes."""
    end = time.time() + 120
    while not ready():
        assert process.poll() is None and time.time() < end, f"{what} did not start"
        time.sleep(0.2)
