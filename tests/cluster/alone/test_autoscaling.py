"""A cluster of no workers: Ray's own autoscaler brings a node for an encoder and takes it away again
(tests/campaigns/autoscaling.py: readers too, and a training)."""

import pytest

from nvg import config as configuration
from nvg import storage
from pipelines.steps import plan
from tests.support import autoscaler
from tests.support.smoke import SMOKE, untrained_tokenizer
from tests.support.synthetic import write_images
from tests.support.waiting import until

pytestmark = pytest.mark.timeout(600)


def test_a_node_comes_for_an_encoder_and_goes_when_the_tokens_are_made(tmp_path):
    settings = [
        *(f"output={tmp_path}/run", f"data.train={write_images(tmp_path / 'images', each=8)}"),
        *("cluster.cpus_per_worker=0.25", "cluster.cpus_per_reader=0.25"),  # one node has room for everything
        "cluster.worker_resources={encoder: 1}",
    ]
    config = configuration.load(SMOKE, settings)
    artifacts = plan(config)
    untrained_tokenizer(config, artifacts["tokenizer"].folder, 0)
    job = ["pipelines/build_tokens.py", "--config", str(SMOKE), *settings]
    with autoscaler.growing(idle_seconds=2) as cluster:
        log = cluster.run(*job)
        until(lambda: any("(idle)" in what for _, what in cluster.decisions()), "the node to go")
        decisions = [what for _, what in cluster.decisions()]
    assert "Adding 1 node(s) of type encoder." in decisions
    assert "Adding 1 node(s) of type encoder" in log  # the job's own log says so
    tokens = storage.read_json(f"{artifacts['tokens'].folder}/metadata.json")
    assert tokens["rows"] == 24 and len(tokens["images_by_node"]) == 1
