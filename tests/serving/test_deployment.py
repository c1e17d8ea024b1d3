"""The deployment, before any Ray: what Serve is told."""

import pytest
import torch

from nvg.config import ServeConfig, serve_config
from nvg.errors import ConfigError
from nvg.generator import Sampler
from nvg.serving.deployment import ALLOCATOR, batch_sizes, default_name, load_model
from nvg.serving.guard import hash_key
from pipelines.serve import build


def test_ray_serves_own_tools_build_it_from_words_and_see_no_key(monkeypatch):
    monkeypatch.setenv("NVG_API_KEYS", "one, two")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    deployment = build({"model": "fashion-mnist", "max_replicas": "4", "drain_seconds": "9"})._bound_deployment
    config, hashes = deployment.init_args
    assert config["model"] == "fashion-mnist" and config["max_replicas"] == 4
    assert hashes == [hash_key("one"), hash_key("two")] and "two" not in str(deployment.init_args)
    told = deployment._deployment_config
    assert told.autoscaling_config.max_replicas == 4 and told.graceful_shutdown_timeout_s == 9
    variables = deployment.ray_actor_options["runtime_env"]["env_vars"]
    assert variables["MLFLOW_TRACKING_URI"] == "http://mlflow:5000"  # where a replica looks models:/ up
    assert ALLOCATOR.items() <= variables.items()  # glibc reads them where the replica's process begins
    assert told.max_surge_percent == 100  # a new version starts before the old one stops
    assert "NVG_VERBOSE" not in variables
    monkeypatch.setenv("NVG_VERBOSE", "1")  # --verbose: a replica then writes its requests to the console too
    spoken = build({"model": "fashion-mnist"})._bound_deployment.ray_actor_options["runtime_env"]["env_vars"]
    assert spoken == variables | {"NVG_VERBOSE": "1"}


def test_a_model_is_served_in_the_precision_that_is_asked_for():
    sampler = load_model(ServeConfig(precision="bfloat16"), "fashion-mnist").sampler
    assert sampler.content.backbone.blocks[0].project_in.weight.dtype == torch.bfloat16
    assert sampler.generate(["Bag"], seed=0).shape == (1, 32, 32, 1)
    with pytest.raises(ConfigError, match="precision='float16'"):
        serve_config({}, ["precision=float16"])


def test_compiling_says_what_it_waits_for_and_covers_every_batch(monkeypatch, capsys):
    assert [batch_sizes(most) for most in (1, 6, 16)] == [[1], [1, 2, 4, 6], [1, 2, 4, 8, 16]]
    sizes = []
    monkeypatch.setattr(Sampler, "compile", lambda sampler, some: sizes.extend(some))  # tests/generator compiles
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/some/folder")
    load_model(ServeConfig(compile=True, max_batch=3), "fashion-mnist")
    assert sizes == [1, 2, 3]
    first, last = capsys.readouterr().out.splitlines()
    assert "batches of 1, 2, 3 images" in first and "/some/folder" in first and last.startswith("compiled in")


@pytest.mark.parametrize(
    "model, name",
    [
        ("fashion-mnist", "fashion-mnist"),
        ("runs/a/generators-12/", "generators-12"),
        ("s3://bucket/best", "best"),
        ("models:/nvg@champion", "nvg"),
        ("models:/nvg/3", "nvg"),
    ],
)
def test_a_model_is_called_by_its_own_name(model, name):
    assert default_name(model) == name
