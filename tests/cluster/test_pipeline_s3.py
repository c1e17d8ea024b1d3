"""Tokens and a training on an S3 server, by a user's command (tests/campaigns/store.py: the whole pipeline)."""

import subprocess
import sys

import pytest

import nvg
from nvg import config as configuration
from nvg import storage
from nvg.data.tokens import part_files
from pipelines.build_tokens import build_tokens
from pipelines.steps import plan
from tests.support import s3
from tests.support.smoke import ROOT, untrained_tokenizer
from tests.support.store import BUCKET, CONFIG, SETTINGS, fill, run

pytestmark = pytest.mark.timeout(600)


def test_tokens_and_a_sampler_are_made_in_a_store(store, ray_cluster, tmp_path):
    images = fill(tmp_path)
    config = configuration.load(CONFIG, SETTINGS)
    artifacts = plan(config)
    untrained_tokenizer(config, artifacts["tokenizer"].folder, 0, classes=[f"class {number}" for number in range(5)])
    run("--until", "generators", f"tracking.uri=sqlite:///{tmp_path}/mlflow.db")
    assert all(plan(config)[step].complete for step in ("tokenizer", "tokens", "generators"))
    sampler = nvg.load(artifacts["generators"].folder)
    assert sampler.last_stage == 6 and sampler.class_names == [f"class {number}" for number in range(5)]
    assert sampler.generate(["class 4"]).shape == (1, 32, 32, 1)
    previews = [path for path in storage.list_files(f"{BUCKET}/mlartifacts") if "/previews/" in path]
    assert any(path.endswith("-samples.png") for path in previews)
    left = storage.list_files(f"{BUCKET}/out")
    assert not [path for path in left if path.endswith(".lease") or "/ray_train/" in path]

    local = configuration.load(CONFIG, [*SETTINGS, f"data.train={images}", f"output={tmp_path}"])
    build_tokens(local, str(storage.local_folder(artifacts["tokenizer"].folder)), f"{tmp_path}/tokens")
    in_store, on_disk = part_files(artifacts["tokens"].folder), part_files(f"{tmp_path}/tokens")
    assert in_store.keys() == on_disk.keys() and len(in_store) > 1
    for key, paths in in_store.items():
        assert [storage.read_bytes(path) for path in paths] == [storage.read_bytes(path) for path in on_disk[key]]


def test_wrong_keys_end_a_job_with_one_line_and_no_secret(store):
    with s3.Way(store) as way, s3.environment(way.own_port):
        way.faults = [s3.status(403, "SignatureDoesNotMatch")] * 99
        command = [sys.executable, "pipelines/build_tokens.py", "--config", "conf/smoke.yaml", *SETTINGS]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    text = done.stdout + done.stderr
    assert done.returncode == 1 and text.splitlines()[-1].startswith(f"error: {BUCKET}/images.parquet: ")
    assert "AWS_SECRET_ACCESS_KEY" in text and "Traceback" not in text and s3.SECRET not in text
