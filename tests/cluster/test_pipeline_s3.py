"""The whole pipeline on an S3 server: images, settings, artifacts, MLflow's files; by a user's command."""

import os
import subprocess
import sys

import pytest

import nvg
from nvg import config as configuration
from nvg import storage
from nvg.data.tokens import part_files
from pipelines.build_tokens import build_tokens
from pipelines.steps import plan
from tests.cluster.conftest import ROOT
from tests.support import s3
from tests.support.pictures import write_parquet

pytestmark = pytest.mark.timeout(900)  # jobs on a Ray that may share its cores

BUCKET = "s3://nvg-test"
OTHER = [  # grey Parquet images of 32x32 in five classes, 8x8 latents: nothing is bound to a data set
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


def run(*arguments):
    """pipelines/run.py in a process of its own, which is to end well; its output."""
    command = [sys.executable, "pipelines/run.py", "--config", f"{BUCKET}/other.yaml", *OTHER, *arguments]
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


def test_everything_is_read_from_and_written_to_a_store(store, ray_cluster, tmp_path):
    images = write_parquet(tmp_path / "images.parquet", count=40, classes=5, text=True, group=16)
    storage.write_bytes(f"{BUCKET}/images.parquet", open(images, "rb").read())
    storage.write_bytes(f"{BUCKET}/other.yaml", (ROOT / "conf" / "smoke.yaml").read_bytes())
    tracked = f"tracking.uri=sqlite:///{tmp_path}/mlflow.db"
    run(tracked)
    artifacts = plan(configuration.load(f"{BUCKET}/other.yaml", OTHER))
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

    local = configuration.load(f"{BUCKET}/other.yaml", [*OTHER, f"data.train={images}", f"output={tmp_path}"])
    build_tokens(local, str(storage.local_folder(artifacts["tokenizer"].folder)), f"{tmp_path}/tokens")
    there, here = part_files(artifacts["tokens"].folder), part_files(f"{tmp_path}/tokens")
    assert there.keys() == here.keys() and len(there) > 1
    for place, paths in there.items():
        assert [storage.read_bytes(path) for path in paths] == [storage.read_bytes(path) for path in here[place]]

    assert "every step is complete: nothing to do" in run(tracked)


def test_wrong_keys_end_a_job_with_one_line_and_no_secret(store):
    with s3.Way(store) as way, s3.environment(way.own_port):
        way.faults = [s3.status(403, "SignatureDoesNotMatch")] * 99
        command = [sys.executable, "pipelines/build_tokens.py", "--config", "conf/smoke.yaml", *OTHER]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    text = done.stdout + done.stderr
    assert done.returncode == 1 and text.splitlines()[-1].startswith(f"error: {BUCKET}/images.parquet: ")
    assert "AWS_SECRET_ACCESS_KEY" in text and "Traceback" not in text and s3.SECRET not in text
