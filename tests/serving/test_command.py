"""pipelines/serve.py refuses what it cannot serve with one line, before it starts a Ray."""

import socket

import pytest
import ray

from pipelines import serve

CONFIG = ["--config", "conf/serving/fashion_mnist.yaml"]


@pytest.mark.parametrize(
    "setting, words",
    [
        ("model=nowhere", "no sampler 'nowhere'"),
        ("mdel=x", "unknown key 'mdel'; did you mean 'model'"),
        ("max_queue=8", "max_queue=8 is below max_images=64"),
        ("max_batch=0", "max_batch=0 must be at least 1"),
        ("port=99999", "port=99999 is none of 1 ... 65535"),
    ],
)
def test_a_wrong_setting_ends_the_command_before_ray_starts(setting, words):
    with pytest.raises(SystemExit, match=f"error: .*{words}"):
        serve.main([*CONFIG, setting])
    assert not ray.is_initialized()


def test_a_port_in_use_ends_the_command_before_ray_starts():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(SystemExit, match="error: .*cannot listen on 127.0.0.1"):
            serve.main([*CONFIG, f"port={taken.getsockname()[1]}"])
    assert not ray.is_initialized()
