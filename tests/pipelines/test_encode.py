"""The tokenizer actor of build_tokens, without Ray."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch

from nvg import config as configuration
from nvg.artifacts import models
from nvg.cluster import actors
from nvg.config import ClusterConfig
from nvg.data.images import to_float
from pipelines.build_tokens import Encode, Stopwatch

SHIPPED = str(models.ASSETS / "fashion-mnist")
PARTS = ("encoder", "clustering", "quantization", "features")


def encoder(*, batch, use_gpu=False):
    config = configuration.load("conf/fashion_mnist.yaml", ["repa.weights=null"])
    config.cluster = replace(config.cluster, encode_batch=batch, use_gpu=use_gpu, threads_per_worker=1)
    return Encode(config, SHIPPED)


def images(count):
    return np.random.default_rng(0).integers(0, 256, (count, 32, 32, 1), np.uint8)


@pytest.mark.parametrize("batch", [3, 64])
def test_a_row_of_images_becomes_the_tokens_of_its_images_in_their_order(batch):
    actor, pixels = encoder(batch=batch), images(7)
    row = actor({"name": "part", "images": pixels.tobytes()})
    expected = actor.tokenizer.encode(to_float(pixels))
    for name, tokens in (("content", expected.flat_content()), ("structure", expected.codes)):
        found = np.frombuffer(row[name], np.uint16).reshape(7, -1)
        assert np.array_equal(found, tokens.numpy())
    assert row["name"] == "part" and row["features"] == b"" and "images" not in row
    assert row["seconds_features"] == 0.0
    assert all(row[f"seconds_{part}"] > 0.0 for part in PARTS[:3])


def test_two_rows_at_once_have_the_tokens_of_each_alone(monkeypatch):
    """Two threads call an actor: while one waits for its results, the other starts its row."""
    actor = encoder(batch=3)
    rows = [{"name": str(number), "images": images(count).tobytes()} for number, count in enumerate((5, 7, 0, 4))]
    expected = [actor(dict(row)) for row in rows]
    both, waited, started = threading.Barrier(2, timeout=60), Stopwatch.seconds, []
    look = actor._look

    def alone(*arguments):
        started.append(threading.get_ident())
        result = look(*arguments)
        assert started[-1] == threading.get_ident()  # no other row is started meanwhile
        return result

    def wait(clock, names):
        both.wait()  # both rows are started
        return waited(clock, names)

    monkeypatch.setattr(actor, "_look", alone)
    monkeypatch.setattr(Stopwatch, "seconds", wait)
    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(actor, [dict(row) for row in rows]))
    assert len(set(started)) == 2
    for one, other in zip(found, expected, strict=True):
        assert all(one[name] == other[name] for name in ("name", "content", "structure", "features"))


def test_an_actor_that_works_on_two_rows_at_once_holds_no_third(monkeypatch):
    import ray.data

    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0})
    cluster = ClusterConfig(encoders=2)
    pool = actors(cluster, calls=2)
    assert pool.enable_true_multi_threading and pool.max_size == 2
    assert pool.max_concurrent_calls_per_actor == pool.max_tasks_in_flight_per_actor == 2
    assert actors(cluster) == ray.data.ActorPoolStrategy(size=2)


def test_a_row_without_images_has_no_tokens():
    row = encoder(batch=3)({"images": b""})
    assert row["content"] == row["structure"] == b"" and not any(row[f"seconds_{part}"] for part in PARTS)


def test_a_stopwatch_sums_the_laps_of_each_part():
    clock = Stopwatch(torch.device("cpu"))
    start = time.perf_counter()
    for part, pause in (("a", 0.02), ("b", 0.0), ("a", 0.03)):
        time.sleep(pause)
        clock.lap(part)
    took = time.perf_counter() - start
    seconds = clock.seconds(("a", "b", "c"))
    assert list(seconds) == ["a", "b", "c"] and seconds["c"] == 0.0
    assert seconds["a"] >= 0.05 and 0.0 <= seconds["b"] < seconds["a"]
    assert sum(seconds.values()) == pytest.approx(took, abs=0.01)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_the_tokens_are_those_of_the_cpu_and_no_batch_waits_for_its_encoding():
    pixels = images(40)
    here, there = encoder(batch=8), encoder(batch=8, use_gpu=True)
    expected = here({"images": pixels.tobytes()})
    there({"images": pixels.tobytes()})  # libraries wait as they start
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.inference_mode():
            there._look(pixels, Stopwatch(there.device))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    found = there({"images": pixels.tobytes()})
    same = np.frombuffer(found["structure"], np.uint16) == np.frombuffer(expected["structure"], np.uint16)
    assert same.mean() > 0.99  # convolutions round otherwise there
