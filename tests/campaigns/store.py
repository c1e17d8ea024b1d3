"""The whole pipeline on an S3 server, evaluation and a second run included.

    python -m tests.campaigns.store

The server is moto, or with NVG_S3=ceph Ceph's gateway. The short form, tests/cluster/alone/test_pipeline_s3.py, makes
tokens and trains on them.
"""

import sys

import pytest

from nvg import config as configuration
from nvg import storage
from nvg.data.tokens import part_files
from pipelines.build_tokens import build_tokens
from pipelines.steps import plan
from tests.support.store import CONFIG, SETTINGS, check_sampler, fill, run

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
    check_sampler(artifacts)

    local = configuration.load(CONFIG, [*SETTINGS, f"data.train={images}", f"output={tmp_path}"])
    build_tokens(local, str(storage.local_folder(artifacts["tokenizer"].folder)), f"{tmp_path}/tokens")
    in_store, on_disk = part_files(artifacts["tokens"].folder), part_files(f"{tmp_path}/tokens")
    assert in_store.keys() == on_disk.keys() and len(in_store) > 1
    for key, paths in in_store.items():
        assert [storage.read_bytes(path) for path in paths] == [storage.read_bytes(path) for path in on_disk[key]]

    assert "every step is complete: nothing to do" in run(tracked)


if __name__ == "__main__":
    sys.exit(pytest.main([__file__]))
