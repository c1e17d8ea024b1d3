"""Fixtures of the tests on Ray: one Ray for all, a small tokenizer, its tokens made on Ray once, Ray Serve on it.

A conftest.py imports the ones that its folder uses.
"""

import os

import pytest

from nvg.cluster import keep_workers
from nvg.config import ServeConfig
from pipelines.serve import free_ports, use_haproxy
from tests.support.smoke import smoke, untrained_tokenizer
from tests.support.synthetic import CLASSES, write_images
from tests.support.waiting import until


@pytest.fixture(scope="session")
def ray_cluster():
    """A running Ray (ray.cluster_utils.Cluster): a head with 2 CPUs and an object store of 500 MB."""
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    # How often Ray Train looks at its workers: by default a job's end is seen up to two seconds late.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    os.environ.setdefault("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "0.5")
    # How long to wait for a node in vain that is gone, or was announced to leave, and is still counted as there.
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "5")
    use_haproxy()
    keep_workers(2)
    import ray
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 2, "object_store_memory": 500 * 10**6, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    environment = {"env_vars": {"OMP_NUM_THREADS": "1"}}
    ray.init(address=cluster.address, log_to_driver=True, runtime_env=environment)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("data") / "images")


@pytest.fixture(scope="session")
def tokenizer(images, tmp_path_factory):
    """A folder with a tokenizer that was not trained."""
    output = tmp_path_factory.mktemp("tokenizer")
    return untrained_tokenizer(smoke(output, images), output / "tokenizer", 0, CLASSES)


@pytest.fixture(scope="session")
def tokens(ray_cluster, tokenizer, images, tmp_path_factory):
    """A folder with its tokens, made on Ray."""
    from pipelines.build_tokens import build_tokens

    output = tmp_path_factory.mktemp("tokens")
    build_tokens(smoke(output, images), tokenizer, f"{output}/tokens")
    return f"{output}/tokens"


@pytest.fixture(scope="module")
def port(ray_cluster):
    from ray import serve

    (free,) = free_ports(1)
    yield free
    serve.shutdown()


@pytest.fixture(scope="module")
def deploy(port):
    """deploy(**settings): the application with these settings, replacing the one before; returns its address."""
    from pipelines.serve import deploy

    def run(**settings):
        deploy(ServeConfig(port=port, cpus_per_replica=0.5, **settings))
        return f"http://127.0.0.1:{port}"

    return run


@pytest.fixture(scope="module")
def address(deploy):
    return deploy()


@pytest.fixture
def add_node(ray_cluster):
    """add_node(**resources): one more raylet of two CPUs; those that are left go after the test."""
    added = []

    def add(**resources):
        added.append(ray_cluster.add_node(num_cpus=2, object_store_memory=150 * 10**6, **resources))
        return added[-1]

    yield add
    for node in added:
        if node in ray_cluster.worker_nodes:
            ray_cluster.remove_node(node)


def alive():
    import ray

    return sum(node["Alive"] for node in ray.nodes())


def look_again(count):
    """Let Ray's coordinator of reservations, which looks at the nodes every 20 s, see now that there are so many."""
    import ray
    from ray.data._internal.cluster_autoscaler import default_autoscaling_coordinator as coordinator

    until(lambda: alive() == count, f"{count} nodes")
    actor = coordinator.get_or_create_autoscaling_coordinator()
    ray.get(actor.get_reserved_resources.remote("nobody", recompute=True))


def announce_loss(ray_cluster, node):
    """Give Ray the notice that a cloud gives of a spot machine: this node leaves in a minute."""
    from ray.scripts.scripts import drain_node

    arguments = ["--address", ray_cluster.address, "--node-id", node.node_id]
    arguments += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
    drain_node.main([*arguments, "--deadline-remaining-seconds", "60"], standalone_mode=False)
