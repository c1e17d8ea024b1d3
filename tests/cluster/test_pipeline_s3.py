"""Tokens and a training on an S3 server, by a user's command (tests/campaigns/store.py: the whole pipeline)."""

import subprocess
import sys

import pytest

from nvg import config as configuration
from pipelines.steps import plan
from tests.support import s3
from tests.support.smoke import ROOT, database, untrained_tokenizer
from tests.support.store import BUCKET, CONFIG, SETTINGS, check_sampler_and_tokens, fill, run

pytestmark = pytest.mark.timeout(600)


def test_tokens_and_a_sampler_are_made_in_a_store(store, ray_cluster, images, tmp_path):
    runs = f"tracking.uri={database(images)}"  # of all tests: making one takes MLflow seconds
    images = fill(tmp_path)
    config = configuration.load(CONFIG, SETTINGS)
    artifacts = plan(config)
    untrained_tokenizer(config, artifacts["tokenizer"].folder, 0, classes=[f"class {number}" for number in range(5)])
    run("--until", "generators", runs)
    assert all(plan(config)[step].complete for step in ("tokenizer", "tokens", "generators"))
    check_sampler_and_tokens(images, artifacts, tmp_path)


def test_wrong_keys_end_a_job_with_one_line_and_no_secret(store):
    with s3.Way(store) as way, s3.environment(way.own_port):
        way.faults = [s3.status(403, "SignatureDoesNotMatch")] * 99
        command = [sys.executable, "pipelines/build_tokens.py", "--config", "conf/smoke.yaml", *SETTINGS]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    text = done.stdout + done.stderr
    assert done.returncode == 1 and text.splitlines()[-1].startswith(f"error: {BUCKET}/images.parquet: ")
    assert "AWS_SECRET_ACCESS_KEY" in text and "Traceback" not in text and s3.SECRET not in text
