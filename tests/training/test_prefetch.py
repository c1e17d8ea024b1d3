"""Fetching ahead changes neither order nor errors."""

import itertools
import threading
import time

import pytest

from nvg.training.prefetch import Prefetch


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
