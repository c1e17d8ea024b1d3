"""Where the transformers' blocks are in bfloat16, each float32 operation of a picture is a known one, with a reason."""

import pytest
import torch

from benchmarks import float32
from benchmarks.schedules import FORMS
from benchmarks.tracing import Numbers


class Names(Numbers):
    def __init__(self):
        super().__init__()
        self.names = []

    def see(self, operation, tensors):
        self.names.append(operation)


@torch.inference_mode()
def test_what_copies_is_seen_and_what_views_is_not():
    x, names = torch.ones(4, 6), Names()
    with names:
        x.view(6, 4)
        x.reshape(24)
        x.T.reshape(24)
        x.to(torch.float32)
        x.to(torch.bfloat16)
        x.contiguous()
        x.T.contiguous()
        torch.empty(3)
        x.split(2)
        x.add_(1)
        torch.nn.functional.linear(x, x)
    assert names.names == ["clone", "_to_copy", "clone", "add_", "mm"]


@pytest.fixture(scope="module")
def counts():
    return [float32.traced("smoke", form) for form in FORMS]


def test_no_operation_of_a_picture_is_in_float32_but_those_with_a_reason(counts):
    """One of `not allowed` is new: leave it out, or give its reason in benchmarks/float32.py."""
    assert float32.unexpected(counts) == []


def test_a_block_computes_in_bfloat16_alone(counts):
    inside = ("block.Block", "block.HeadNorm", "block.modulate", "block.scaled", "block.attention", "rope.rotate")
    assert not [where for count in counts for where, _ in count.wide if where.startswith(inside)]


def test_another_operation_and_one_that_is_gone_are_named(counts, monkeypatch):
    monkeypatch.setattr(float32, "ALLOWED", {**float32.ALLOWED, "nucleus.pick": ("mul", "")})
    assert float32.unexpected(counts) == ["not allowed: div in nucleus.pick", "no longer there: mul in nucleus.pick"]
