"""The whole pipeline on an S3 server, evaluation and a second run included.

    python -m tests.campaigns.store

The server is moto, or with NVG_S3=ceph Ceph's gateway. tests/cluster/test_pipeline_s3.py is the short form, which makes
tokens and trains on them.
"""

import sys

import pytest

import nvg
from nvg import config as configuration
from nvg import storage
from nvg.data.tokens import part_files
from pipelines.build_tokens import build_tokens
from pipelines.steps import plan
from tests.support.store import BUCKET, CONFIG, SETTINGS, fill, run

pytestmark = pytest.mark.timeout(900)


def test_everything_is_read_from_and_written_to_a_store(store, ray_cluster, tmp_path):
    images = fill(tmp_path)
    tracked = f"tracking.uri=sqlite:///{tmp_path}/mlflow.db"
    run(tracked)
    artifacts = plan(configuration.load(CONFIG, SETTINGS))
    assert all(artifact.complete for artifact in artifacts.values())

    sampler = nvg.load(artifacts["generators"].folder)
    assert sampler.last_stage == 6 and sampler.class_names == [f"class {number}" for number in range(5)]
    assert sampler.generate(["class 4"]).shape == (1, 32, 32, 1)
    folder = artifacts["evaluation"].folder
    figures = storage.read_json(f"{folder}/evaluation.json")["figures"]
    assert figures["reconstruction_images"] == "12 test images"
    assert storage.read_bytes(f"{folder}/samples.npz")[:2] == b"PK"
    assert storage.read_bytes(f"{folder}/samples.png")[:4] == b"\x89PNG"
    previews = [path for path in storage.list_files(f"{BUCKET}/mlartifacts") if "/previews/" in path]
    assert any(path.endswith("-samples.png") for path in previews)
    left = storage.list_files(f"{BUCKET}/out")
    assert not [path for path in left if path.endswith(".lease") or "/ray_train/" in path]

    local = configuration.load(CONFIG, [*SETTINGS, f"data.train={images}", f"output={tmp_path}"])
    build_tokens(local, str(storage.local_folder(artifacts["tokenizer"].folder)), f"{tmp_path}/tokens")
    there, here = part_files(artifacts["tokens"].folder), part_files(f"{tmp_path}/tokens")
    assert there.keys() == here.keys() and len(there) > 1
    for place, paths in there.items():
        assert [storage.read_bytes(path) for path in paths] == [storage.read_bytes(path) for path in here[place]]

    assert "every step is complete: nothing to do" in run(tracked)


if __name__ == "__main__":
    sys.exit(pytest.main([__file__]))
