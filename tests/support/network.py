"""Nodes at addresses of their own: Linux network namespaces, each with its host name, on a bridge; no node reaches
another but by the network. Needs root; where it cannot be made, the tests are skipped."""

import os
import secrets
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.support.processes import end
from tests.support.smoke import ROOT

HOSTS = {"head": "10.77.0.1", "worker": "10.77.0.2", "client": "10.77.0.3"}
SWITCH = "switch"  # the namespace with the bridge
PATIENCE = 120  # seconds


def ip(*arguments):
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


class Network:
    """A bridge and a namespace for each of HOSTS. `run` and `start` are commands on a host."""

    def __init__(self):
        self.names = {host: f"nvg{os.getpid()}-{host}" for host in (SWITCH, *HOSTS)}
        self.started = []
        self.token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}  # every host has it

    def make(self):
        switch = self.names[SWITCH]
        for name in self.names.values():
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        ip("-n", switch, "link", "set", "bridge", "up")
        table = "127.0.0.1 localhost\n" + "".join(f"{address} {host}\n" for host, address in HOSTS.items())
        for host, address in HOSTS.items():
            name = self.names[host]
            ip("-n", switch, "link", "add", host, "type", "veth", "peer", "name", "eth0", "netns", name)
            ip("-n", switch, "link", "set", host, "master", "bridge", "up")
            ip("-n", name, "address", "add", f"{address}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
            folder = Path("/etc/netns", name)  # `ip netns exec` shows it in place of /etc/hosts
            folder.mkdir(parents=True)
            (folder / "hosts").write_text(table)

    def command(self, host, arguments):
        inside = f"hostname {host} && exec {shlex.join(map(str, arguments))}"
        return ["ip", "netns", "exec", self.names[host], "unshare", "--uts", "sh", "-c", inside]

    def run(self, host, *arguments, **environment):
        """A command on a host, to its end; returns what it printed. AssertionError when it fails."""
        done = subprocess.run(
            self.command(host, arguments),
            cwd=ROOT,
            env=os.environ | self.token | environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
        return done.stdout + done.stderr

    def start(self, host, log, *arguments, **environment):
        """A command on a host that stays."""
        with open(log, "w") as file:
            process = psutil.Popen(
                self.command(host, arguments),
                cwd=ROOT,
                env=os.environ | self.token | environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
            )
        self.started.append(process)
        return process

    def remove(self):
        for process in reversed(self.started):
            end(process)
        for name in self.names.values():
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)
            shutil.rmtree(Path("/etc/netns", name), ignore_errors=True)


@pytest.fixture(scope="module")
def network():
    missing = [tool for tool in ("ip", "unshare", "hostname", "curl") if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"not there: {', '.join(missing)}")
    network = Network()
    try:
        network.make()
    except (OSError, subprocess.CalledProcessError) as error:
        network.remove()
        pytest.skip(f"no network namespaces here: {getattr(error, 'stderr', '') or error}")
    yield network
    network.remove()


@pytest.fixture(scope="module")
def ray_hosts(network, tmp_path_factory):
    """A head and a worker of two CPUs each; returns their address."""
    folder = Path(f"/tmp/nvg{os.getpid()}")  # short: a socket's path has 107 characters at most
    common = ["--block", "--disable-usage-stats", "--num-cpus=2", "--object-store-memory=200000000"]
    environment = {"RAY_SERVE_ENABLE_HA_PROXY": "0", "RAY_num_workers_soft_limit": "8"}
    logs = tmp_path_factory.mktemp("logs")

    def start(host, *arguments):
        ray = [sys.executable, "-m", "ray.scripts.scripts", "start", f"--node-ip-address={HOSTS[host]}"]
        process = network.start(host, logs / host, *ray, *arguments, *common, **environment)
        end = time.monotonic() + PATIENCE
        while "block forever" not in (logs / host).read_text():
            assert process.is_running() and time.monotonic() < end, (logs / host).read_text()
            time.sleep(0.2)

    address = f"{HOSTS['head']}:6379"
    start("head", "--head", "--port=6379", "--include-dashboard=false", f"--temp-dir={folder}")
    start("worker", f"--address={address}")
    yield address
    shutil.rmtree(folder, ignore_errors=True)
