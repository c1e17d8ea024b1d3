"""Tokens and a training on an S3 server, by a user's command (tests/campaigns/store.py: the whole pipeline)."""

import subprocess
import sys

import numpy as np
import pytest

from nvg import config as configuration
from nvg.artifacts.models import load_tokenizer
from nvg.data import open_source
from nvg.data.images import to_float
from nvg.data.stream import read_view
from nvg.data.tokens import part_files, read_part, to_arrays
from pipelines.steps import plan
from tests.support import s3
from tests.support.smoke import ROOT, untrained_tokenizer
from tests.support.store import BUCKET, CONFIG, SETTINGS, check_sampler, fill, run

pytestmark = pytest.mark.timeout(600)


def test_tokens_and_a_sampler_are_made_in_a_store(store, tmp_path):
    images = fill(tmp_path)
    config = configuration.load(CONFIG, SETTINGS)
    artifacts = plan(config)
    tokenizer = artifacts["tokenizer"].folder
    untrained_tokenizer(config, tokenizer, 0, classes=[f"class {number}" for number in range(5)])
    run("--until", "generators", f"tracking.uri=sqlite:///{tmp_path}/mlflow.db")
    assert all(plan(config)[step].complete for step in ("tokenizer", "tokens", "generators"))
    check_sampler(artifacts)

    local = configuration.load(CONFIG, [*SETTINGS, f"data.train={images}"])  # the tokens are those of images on a disk
    source, encoder = open_source(local.data, "train"), load_tokenizer(tokenizer)
    parts = part_files(artifacts["tokens"].folder)
    assert len(parts) == len(source.units) > 1
    for (unit, view), (path,) in parts.items():
        pixels, ids, labels, _ = read_view(source, source.units[unit], local.data, view, local.seed)
        sequence, table = encoder.encode(to_float(pixels)), read_part(path)
        arrays = to_arrays(table)
        assert table["image_id"].to_pylist() == ids and arrays["labels"].tolist() == labels
        assert np.array_equal(arrays["codes"], sequence.codes.numpy())
        assert np.array_equal(arrays["content"], sequence.flat_content().numpy())


def test_wrong_keys_end_a_job_with_one_line_and_no_secret(store):
    with s3.Way(store) as way, s3.environment(way.own_port):
        way.faults = [s3.status(403, "SignatureDoesNotMatch")] * 99
        command = [sys.executable, "pipelines/build_tokens.py", "--config", "conf/smoke.yaml", *SETTINGS]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    text = done.stdout + done.stderr
    assert done.returncode == 1 and text.splitlines()[-1].startswith(f"error: {BUCKET}/images.parquet: ")
    assert "AWS_SECRET_ACCESS_KEY" in text and "Traceback" not in text and s3.SECRET not in text
