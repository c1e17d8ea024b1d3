"""The whole pipeline on an S3 server, evaluation and a second run included.

    python -m tests.campaigns.store

The server is moto, or with NVG_S3=ceph Ceph's gateway. tests/cluster/test_pipeline_s3.py is the short form, which makes
tokens and trains on them.
"""

import sys

import pytest

from nvg import config as configuration
from nvg import storage
from pipelines.steps import plan
from tests.support.store import CONFIG, SETTINGS, check_sampler_and_tokens, fill, run

pytestmark = pytest.mark.timeout(900)


def test_everything_is_read_from_and_written_to_a_store(store, ray_cluster, tmp_path):
    images = fill(tmp_path)
    tracked = f"tracking.uri=sqlite:///{tmp_path}/mlflow.db"
    run(tracked)
    artifacts = plan(configuration.load(CONFIG, SETTINGS))
    assert all(artifact.complete for artifact in artifacts.values())

    folder = artifacts["evaluation"].folder
    figures = storage.read_json(f"{folder}/evaluation.json")["figures"]
    assert figures["reconstruction_images"] == "12 test images"
    assert storage.read_bytes(f"{folder}/samples.npz")[:2] == b"PK"
    assert storage.read_bytes(f"{folder}/samples.png")[:4] == b"\x89PNG"
    check_sampler_and_tokens(images, artifacts, tmp_path)

    assert "every step is complete: nothing to do" in run(tracked)


if __name__ == "__main__":
    sys.exit(pytest.main([__file__]))
