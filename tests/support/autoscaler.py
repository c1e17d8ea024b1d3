"""A cluster that grows from no workers and shrinks again: Ray's own autoscaler, on this machine.

A head without CPUs and Ray's autoscaler, whose provider starts raylets here in place of virtual machines. Resources are
pretended: all nodes share this machine's cores.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import ray.util
from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider

from pipelines.serve import free_ports
from tests.support.processes import end
from tests.support.smoke import ROOT

HEAD = "fffffffffffffffffffffffffffffffffffffffffffffffffff00000"  # the provider's name for it
STORE = 150 * 10**6  # bytes of a node's object store
MEMORY = 2 * 10**9  # bytes: what a node's type does not name the autoscaler takes for not there
TYPES: dict[str, dict[str, float]] = {  # nodes that read and nodes that encode
    "reader": {"CPU": 2, "reader": 2},
    "encoder": {"CPU": 1, "encoder": 1},
}
AT_MOST = 2  # nodes of a type
DECISION = re.compile(r"^(\S+ \S+?),\d+\tINFO event_logger.py:\d+ -- (.+)$")
PATIENCE = 90  # seconds for a head to start


class LocalNodes(FakeMultiNodeProvider):
    """Ray's provider that starts raylets on this machine, as ray.cluster_utils.AutoscalingCluster has it (which
    does not run from Ray's wheels). A raylet counts its memory by itself."""

    def _create_node_with_resources_and_labels(
        self, node_config: Any, tags: Any, count: int, resources: dict[str, float], labels: Any
    ) -> None:
        given = {name: amount for name, amount in resources.items() if name != "memory"}
        super()._create_node_with_resources_and_labels(node_config, tags, count, given, labels)


@dataclass(frozen=True)
class Growing:
    """A running cluster that grows."""

    environment: dict[str, str]  # of a job: RAY_ADDRESS and the cluster's token
    folder: Path

    def decisions(self) -> list[tuple[float, str]]:
        """What the autoscaler decided, by its own log: time (Unix seconds) and line."""
        log = self.folder / "session_latest" / "logs" / "monitor.log"
        lines = log.read_text().splitlines() if log.exists() else []
        found = (DECISION.match(line) for line in lines)
        return [(datetime.fromisoformat(item[1]).timestamp(), item[2]) for item in found if item]

    def nodes(self) -> int:
        """How many nodes have joined, the head not counted."""
        code = "import ray; ray.init(log_to_driver=False); print(sum(node['Alive'] for node in ray.nodes()) - 1)"
        command = [sys.executable, "-c", code]
        environment = os.environ | self.environment
        return int(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)

    def run(self, *command: str) -> str:
        """Run a Python script as a job of the cluster, which must end well; returns its output."""
        environment = os.environ | self.environment
        job = [sys.executable, *command]
        done = subprocess.run(job, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        output = done.stdout + done.stderr
        assert done.returncode == 0, output[-8000:]
        return output


def settings(idle_seconds: float, address: str) -> dict[str, Any]:
    """The autoscaler's configuration, as for `ray up`, with the provider above."""
    workers = {
        name: {
            "resources": {**resources, "memory": MEMORY, "object_store_memory": STORE},
            "node_config": {},
            "min_workers": 0,
            "max_workers": AT_MOST,
        }
        for name, resources in TYPES.items()
    }
    head = {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}
    return {
        "cluster_name": "nvg",
        "max_workers": AT_MOST * len(TYPES),
        "idle_timeout_minutes": idle_seconds / 60,
        "upscaling_speed": 1.0,
        "provider": {
            "type": "external",  # "fake_multinode" wants a file that Ray's wheels do not hold
            "module": "tests.support.autoscaler.LocalNodes",
            "gcs_address": address,
            "head_node_id": HEAD,
            "launch_multiple": True,
            "use_node_id_as_ip": True,  # they all have one address
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "available_node_types": {"ray.head.default": head, **workers},
        "head_node_type": "ray.head.default",
        "auth": {},
        "file_mounts": {},
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
        "rsync_exclude": [],
        "rsync_filter": [],
        "initialization_commands": [],
        "setup_commands": [],
        "head_setup_commands": [],
        "worker_setup_commands": [],
        "head_start_ray_commands": [],
        "worker_start_ray_commands": [],
    }


@contextmanager
def growing(idle_seconds: float = 10) -> Iterator[Growing]:
    """A head and Ray's autoscaler, alone at first. Everything that they started has ended afterwards, and no other Ray
    of this machine is touched (AutoscalingCluster's `ray stop --force` ends them all)."""
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as scratch:  # short: a socket's path has 107 characters
        folder = Path(scratch)
        port, client, dashboard, metrics = free_ports(4)
        host = ray.util.get_node_ip_address()
        address = f"{host}:{port}"
        (folder / "autoscaler.json").write_text(json.dumps(settings(idle_seconds, address)))
        command = [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--port={port}"),
            *(f"--node-ip-address={host}", "--num-cpus=0", f"--object-store-memory={STORE}"),
            *(f"--dashboard-port={dashboard}", f"--temp-dir={folder}", "--disable-usage-stats"),
            *(f"--ray-client-server-port={client}", f"--autoscaling-config={folder}/autoscaler.json"),
        ]
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        environment = (
            os.environ
            | token
            | {
                "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
                "RAY_num_workers_soft_limit": "8",  # nvg.cluster.keep_workers
                "RAY_FAKE_CLUSTER": "1",
                "RAY_enable_autoscaler_v2": "1",  # the default of `ray up` and KubeRay
                "RAY_CLOUD_INSTANCE_ID": HEAD,
                "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD,
                "AUTOSCALER_UPDATE_INTERVAL_S": "1",
                "AUTOSCALER_METRIC_PORT": str(metrics),
            }
        )
        log = folder / "head.log"
        with open(log, "w") as file:
            head = psutil.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file)
        try:
            patience = time.monotonic() + PATIENCE
            while "block forever" not in log.read_text():
                if head.poll() is not None or time.monotonic() > patience:
                    raise RuntimeError(f"the head does not start: {log.read_text()}")
                time.sleep(0.2)
            yield Growing({"RAY_ADDRESS": address, **token}, folder)
        finally:
            end(head)
