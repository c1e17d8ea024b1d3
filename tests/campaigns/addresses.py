"""The pipeline over two hosts with addresses of their own, and a client at a third address that asks what is served.

    python -m tests.campaigns.addresses

tests/cluster/alone/test_addresses.py is the short form, which makes tokens alone.
"""

import json
import sys

import pytest

from nvg import config as configuration
from nvg import storage
from pipelines.steps import plan
from tests.support.network import HOSTS
from tests.support.smoke import SMOKE, untrained_tokenizer
from tests.support.synthetic import write_images

pytestmark = pytest.mark.timeout(900)


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


if __name__ == "__main__":
    sys.exit(pytest.main([__file__]))
