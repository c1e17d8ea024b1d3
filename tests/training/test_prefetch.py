"""Fetching ahead changes neither order nor errors."""

import itertools
import threading
import time

import pytest
import torch

from nvg.training.prefetch import Feed, Prefetch


def test_items_come_in_order_and_end():
    assert list(Prefetch(iter(range(100)))) == list(range(100))


def test_an_error_comes_after_the_items_before_it_and_stays():
    def items():
        yield 1
        yield 2
        raise InterruptedError("gone")

    stream = Prefetch(items())
    assert [next(stream), next(stream)] == [1, 2]
    for _ in range(2):
        with pytest.raises(InterruptedError, match="gone"):
            next(stream)


def test_no_more_than_depth_is_fetched_ahead():
    taken = []
    stream = Prefetch((taken.append(n) or n for n in itertools.count()), depth=3)
    time.sleep(0.3)
    assert len(taken) <= 4  # three that wait and one in hand
    stream.close()


def test_a_closed_stream_leaves_no_thread():
    stream = Prefetch(itertools.count())
    next(stream)
    stream.close()
    stream._thread.join(timeout=5)
    assert stream._thread not in threading.enumerate()


def batches(count, error=None):
    for number in range(count):
        yield {"x": torch.full((3,), float(number)), "y": torch.tensor([number])}
    if error is not None:
        raise error


@pytest.mark.parametrize("ending", [None, InterruptedError("gone")])
def test_a_feed_has_the_batches_in_their_order_and_ends_as_they_do(ending):
    feed, found = Feed(batches(20, ending), torch.device("cpu")), []
    with pytest.raises(StopIteration if ending is None else InterruptedError):
        while True:
            found.append(next(feed))
    assert [int(batch["y"]) for batch in found] == list(range(20))
    assert all(batch["x"].tolist() == [float(batch["y"])] * 3 for batch in found)


def test_a_closed_feed_takes_no_more():
    taken = []

    def counted():
        for batch in batches(1000):
            taken.append(batch)
            yield batch

    feed = Feed(counted(), torch.device("cpu"))
    assert int(next(feed)["y"]) == 0
    feed.close()
    feed._ahead._thread.join(10)
    assert not feed._ahead._thread.is_alive() and len(taken) < 10


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_a_batch_is_there_before_it_is_used():
    device, size = torch.device("cuda"), 2**22

    def large():
        for number in range(20):
            yield {"x": torch.full((size,), float(number))}

    feed = Feed(large(), device)
    sums = [batch["x"].sum() / size for batch in feed]
    assert torch.stack(sums).tolist() == list(map(float, range(20)))
