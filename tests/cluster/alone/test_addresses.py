"""Two nodes at addresses of their own make tokens together (tests/campaigns/addresses.py: the whole pipeline)."""

import sys

import pytest

from nvg import config as configuration
from nvg import storage
from pipelines.steps import plan
from tests.support.smoke import SMOKE, untrained_tokenizer
from tests.support.synthetic import write_images

pytestmark = pytest.mark.timeout(600)

# The job with encoders that take their time: a part that comes when both are idle always goes to the first of them.
SLOWLY = """
import sys, time
import pipelines.build_tokens as job

class SlowEncode(job.Encode):
    def __call__(self, row):
        time.sleep(0.5)
        return super().__call__(row)

job.Encode = SlowEncode
job.main(sys.argv[1:])
"""


def test_two_addresses_make_tokens_together(network, ray_hosts, tmp_path):
    images = write_images(tmp_path / "images", each=8)
    settings = [
        *(f"data.train={images}", f"output={tmp_path}/run", "data.unit_images=2"),
        *("cluster.encoders=2", "cluster.cpus_per_worker=1.2"),  # one fits a node
    ]
    config = configuration.load(SMOKE, settings)
    artifacts = plan(config)
    untrained_tokenizer(config, artifacts["tokenizer"].folder, 0)
    job = [sys.executable, "-c", SLOWLY, "--config", SMOKE, *settings]
    both = {"RAY_DATA_DEFAULT_WAIT_FOR_MIN_ACTORS_S": "200"}  # no part is made before both encoders are there
    log = network.run("head", *job, RAY_ADDRESS=ray_hosts, **both)
    metadata = storage.read_json(f"{artifacts['tokens'].folder}/metadata.json")
    assert metadata["images"] == 24 and len(metadata["images_by_node"]) == 2, log
