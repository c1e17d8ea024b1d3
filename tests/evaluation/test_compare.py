"""Evaluations that cannot be compared are refused by name."""

import copy

import pytest

from nvg import storage
from nvg.evaluation import compare

ONE = {
    "figures": {"frechet_distance": 3.0, "samples": 50000},
    "intervals": {"frechet_distance": [2.9, 3.1]},
    "protocol": {
        "samples": 50000,
        "reference": "10000 reference images",
        "reference_images": 10000,
        "reference_fingerprint": "a",
        "network": "inception 0",
        "image_size": 256,
        "settings": {"flow_steps": 25},
    },
    "sampler": "runs/one",
}


def write(folder, name, **changes):
    content = copy.deepcopy(ONE)
    content["protocol"] |= changes
    storage.write_json(f"{folder}/{name}.json", content)
    return f"{folder}/{name}.json"


def test_the_same_protocol_gives_a_table_whatever_the_samplers_settings(tmp_path, capsys):
    files = [write(tmp_path, "a"), write(tmp_path, "b", settings={"flow_steps": 1})]
    assert compare.main(files) == 0
    printed = capsys.readouterr().out
    assert printed.count("3 [2.9, 3.1]") == 2 and "runs/one" in printed and "samples" not in printed.split("\n\n")[1]


@pytest.mark.parametrize(
    ("key", "value"),
    [("samples", 10000), ("network", "inception 1"), ("reference_fingerprint", "b"), ("given", "other:3")],
)
def test_another_protocol_is_refused_and_named(tmp_path, capsys, key, value):
    assert compare.main([write(tmp_path, "a"), write(tmp_path, "b", **{key: value})]) == 1
    message = capsys.readouterr().err
    assert "cannot be compared" in message and key in message and str(value) in message


def test_dinov2_weights_must_be_the_same_where_both_have_some(tmp_path, capsys):
    one, other, none = (
        write(tmp_path, name, dinov2_network=value)
        for name, value in (("a", "dinov2 1"), ("b", "dinov2 2"), ("c", None))
    )
    assert compare.main([one, none, write(tmp_path, "d")]) == 0
    assert compare.main([one, other]) == 1
    assert "dinov2_network is 'dinov2 1' in the one and 'dinov2 2' in the other" in capsys.readouterr().err


def test_a_file_that_is_no_evaluation_is_named(tmp_path, capsys):
    storage.write_json(f"{tmp_path}/other.json", {"figures": {}})
    assert compare.main([f"{tmp_path}/other.json"]) == 1
    assert "other.json is no evaluation.json" in capsys.readouterr().err
    assert compare.main([f"{tmp_path}/missing.json"]) == 1
