"""Nodes at addresses of their own: Linux network namespaces, each with its host name, on a bridge; no node reaches
another but by the network. The pipeline runs over two of them, and a client at a third address asks what is served."""

import json
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

from nvg import config as configuration
from nvg import storage
from pipelines.steps import plan
from tests.support.processes import end
from tests.support.smoke import ROOT, SMOKE, untrained_tokenizer
from tests.support.synthetic import write_images

HOSTS = {"head": "10.77.0.1", "worker": "10.77.0.2", "client": "10.77.0.3"}
SWITCH = "switch"  # the namespace with the bridge
PATIENCE = 120  # seconds

pytestmark = pytest.mark.timeout(900)


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


def test_the_pipeline_runs_on_two_addresses_and_is_served_to_a_third(network, ray_hosts, tmp_path):
    address = ray_hosts
    images = write_images(tmp_path / "images")
    output = tmp_path / "run"
    settings = [
        *(f"data.train={images}", f"output={output}", "data.unit_images=2"),
        *("cluster.num_workers=2", "cluster.encoders=2", "cluster.cpus_per_worker=1.2"),  # one of a kind fits a node
    ]
    config = configuration.load(SMOKE, settings)
    artifacts = plan(config)
    untrained_tokenizer(config, artifacts["tokenizer"].folder, 0)
    job = [sys.executable, "pipelines/run.py", "--until", "generators", "--config", SMOKE, *settings]
    log = network.run("head", *job, RAY_ADDRESS=address)
    tokens, generators = artifacts["tokens"].folder, artifacts["generators"].folder
    assert len(storage.read_json(f"{tokens}/metadata.json")["images_by_node"]) == 2, log
    assert storage.read_json(f"{generators}/metadata.json")["training"]["workers"] == 2

    served = tmp_path / "serve.yaml"
    served.write_text(
        f"model: {generators}\nhost: 0.0.0.0\nmin_replicas: 2\nmax_replicas: 2\ncpus_per_replica: 1.2\nmax_images: 8\n"
    )
    keys = {"RAY_ADDRESS": address, "NVG_API_KEYS": "key"}
    network.run("head", sys.executable, "pipelines/serve.py", "--config", served, **keys)
    ask = [
        *("curl", "--silent", "--show-error", "--fail", "--max-time", "60", "-H", "Authorization: Bearer key"),
        *("-H", "Content-Type: application/json", "-d", '{"prompt": "disc", "n": 2}'),
    ]
    answers = [
        json.loads(network.run("client", *ask, f"http://{HOSTS[host]}:8000/v1/images/generations"))
        for host in ("head", "worker")
    ]
    assert all(len(answer["data"]) == 2 for answer in answers)
    open_door = ["curl", "--silent", "--max-time", "60", "-o", "/dev/null", "-w", "%{http_code}"]
    assert network.run("client", *open_door, f"http://{HOSTS['head']}:8000/v1/models") == "401"
