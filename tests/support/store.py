"""Jobs by a user's command on an S3 server: images, settings, artifacts and MLflow's files are there.

Grey Parquet images of 32x32 in five classes, 8x8 latents: nothing is bound to a data set.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import nvg
from nvg import storage
from tests.support import s3
from tests.support.pictures import write_parquet
from tests.support.smoke import ROOT, SMOKE

BUCKET = "s3://nvg-test"
SETTINGS = [
    "name=other",
    f"output={BUCKET}/out",
    "data.source=parquet",
    f"data.train={BUCKET}/images.parquet",
    f"data.test={BUCKET}/images.parquet",
    "data.image_size=32",
    "data.channels=1",
    "data.num_classes=5",
    "tokenizer_train.steps=2",
    "train.steps=2",
    "train.batch_size=8",
    "tokenizer_train.batch_size=8",
    f"tracking.artifacts={BUCKET}/mlartifacts",
]
CONFIG = f"{BUCKET}/other.yaml"


def run(*arguments):
    """Run pipelines/run.py in a process of its own, which must end well; returns its output."""
    command = [sys.executable, "pipelines/run.py", "--config", CONFIG, *SETTINGS, *arguments]
    environment = {**os.environ, "RAY_ADDRESS": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    text = done.stdout + done.stderr
    assert s3.SECRET not in text
    assert done.returncode == 0, text[-3000:]
    return text


@pytest.fixture(scope="module")
def store():
    with s3.server() as port, s3.environment(port):
        yield port


def fill(folder):
    """Put the images and the configuration into the store; returns the images' path on this machine."""
    images = write_parquet(folder / "images.parquet", count=40, classes=5, text=True, group=16)
    storage.write_bytes(f"{BUCKET}/images.parquet", Path(images).read_bytes())
    storage.write_bytes(CONFIG, SMOKE.read_bytes())
    return images


def check_sampler(artifacts):
    """Assert that the sampler draws, and that nothing is left over."""
    sampler = nvg.load(artifacts["generators"].folder)
    assert sampler.last_stage == 6 and sampler.class_names == [f"class {number}" for number in range(5)]
    assert sampler.generate(["class 4"]).shape == (1, 32, 32, 1)
    previews = [path for path in storage.list_files(f"{BUCKET}/mlartifacts") if "/previews/" in path]
    assert any(path.endswith("-samples.png") for path in previews)
    left = storage.list_files(f"{BUCKET}/out")
    assert not [path for path in left if path.endswith(".lease") or "/ray_train/" in path]
