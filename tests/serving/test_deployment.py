"""The deployment, before any Ray: what Serve is told."""

from nvg.serving.guard import hash_key
from pipelines.serve import build


def test_ray_serves_own_tools_build_it_from_words_and_see_no_key(monkeypatch):
    monkeypatch.setenv("NVG_API_KEYS", "one, two")
    deployment = build({"model": "fashion-mnist", "max_replicas": "4", "drain_seconds": "9"})._bound_deployment
    config, hashes = deployment.init_args
    assert config["model"] == "fashion-mnist" and config["max_replicas"] == 4
    assert hashes == [hash_key("one"), hash_key("two")] and "two" not in str(deployment.init_args)
    told = deployment._deployment_config
    assert told.autoscaling_config.max_replicas == 4 and told.graceful_shutdown_timeout_s == 9
    assert told.max_surge_percent == 100  # a new version starts before the old one stops
