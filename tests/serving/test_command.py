"""pipelines/serve.py refuses what it cannot serve with one line, before it starts a Ray."""

import socket

import pytest
import ray

from nvg.config import ServeConfig
from nvg.errors import ConfigError
from nvg.serving.guard import api_key_hashes, hash_key
from pipelines import serve

CONFIG = ["--config", "conf/serving/fashion_mnist.yaml"]


@pytest.mark.parametrize(
    "setting, words",
    [
        ("model=nowhere", "no sampler 'nowhere'"),
        ("mdel=x", "unknown key 'mdel'; did you mean 'model'"),
        ("max_queue=8", "max_queue=8 is below max_images=64"),
        ("host=", "host is empty, which is every interface"),
        ("allowed_origins=[example.org]", "allowed_origins='example.org': write scheme://host"),
        ("max_batch=0", "max_batch=0 must be at least 1"),
        ("port=99999", "port=99999 must be at least 1, at most 65535"),
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


@pytest.mark.parametrize("keys", ["", " ", ",", ",,", "\n", " , \n", "\t"])
@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_keys_that_are_set_and_blank_open_nothing_and_start_nothing(monkeypatch, keys, host):
    monkeypatch.setenv("NVG_API_KEYS", keys)
    with pytest.raises(SystemExit, match="^error: NVG_API_KEYS is set and holds no key: unset it to serve without"):
        serve.main([*CONFIG, f"host={host}"])
    with pytest.raises(ConfigError, match="NVG_API_KEYS is set and holds no key"):
        serve.build({"host": host})
    assert not ray.is_initialized()


def test_keys_are_separated_by_commas_or_lines_and_hold_no_space(monkeypatch):
    monkeypatch.setenv("NVG_API_KEYS", " one,two\nthree\r\n,")
    assert api_key_hashes() == [hash_key("one"), hash_key("two"), hash_key("three")]
    monkeypatch.setenv("NVG_API_KEYS", "one two")
    with pytest.raises(ConfigError, match="a key holds a space: separate keys by commas"):
        api_key_hashes()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.7", "example.org"])
def test_an_address_that_others_reach_is_warned_of_without_keys(monkeypatch, capsys, host):
    monkeypatch.delenv("NVG_API_KEYS", raising=False)
    monkeypatch.setenv("RAY_ADDRESS", "auto")  # the address is the cluster's to try
    serve.check(ServeConfig(host=host))
    assert "warning: open to every host that reaches this one: set NVG_API_KEYS" in capsys.readouterr().out
    monkeypatch.setenv("NVG_API_KEYS", "one")
    serve.check(ServeConfig(host=host))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000"),
        ("0.0.0.0", "http://127.0.0.1:8000"),
        ("example.org", "http://example.org:8000"),
        ("::", "http://[::1]:8000"),
        ("::1", "http://[::1]:8000"),
    ],
)
def test_the_address_that_is_said_can_be_opened(host, address):
    assert serve.address_of(ServeConfig(host=host)) == address


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "localhost", "::1"])
def test_an_address_of_this_machine_alone_needs_no_keys(monkeypatch, capsys, host):
    monkeypatch.delenv("NVG_API_KEYS", raising=False)
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    serve.check(ServeConfig(host=host))
    assert capsys.readouterr().out == ""
