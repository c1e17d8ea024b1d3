"""The memory of a training step that capacity/step_memory counts, beside what torch's allocator hands out."""

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile

from benchmarks.capacity.step_memory import Alive, StepMemory, generators, pass_bytes, step_memory
from tests.support.toy_config import toy_config

CLUSTERS = {
    "content": {"depth": 2, "tokens": "clusters", "position_network": True},
    "structure": {"depth": 2, "canvas_tokens": "clusters"},
}


def allocator_peak(call):
    """The most bytes that torch's allocator has handed out within a call, and not got back."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    total = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        total += event.nbytes()
        most = max(most, total)
    return most


@pytest.mark.parametrize("checkpointing", [False, True])
def test_fake_tensors_tell_the_peak_of_the_real_allocator(checkpointing):
    config = toy_config(train={"gradient_checkpointing": checkpointing}, **CLUSTERS)
    counted, real = step_memory(config), generators(config)
    for images in (1, 4):
        found = counted.fixed + images * counted.each
        peaks = []
        handed_out = allocator_peak(
            lambda images=images, peaks=peaks: peaks.append(pass_bytes(real, config, images)[0])
        )
        assert peaks == [pytest.approx(found, rel=0.02)] and handed_out == pytest.approx(found, rel=0.15)


def test_checkpointing_keeps_less_and_the_kept_is_what_autograd_saves():
    config = toy_config(**CLUSTERS)
    on = step_memory(toy_config(train={"gradient_checkpointing": True}, **CLUSTERS))
    off, real, kept = step_memory(config), generators(config), {}
    assert on.each < 0.6 * off.each and on.resident == off.resident
    weights = {weight.untyped_storage().data_ptr() for weight in real.state_dict(keep_vars=True).values()}

    def keep(value):
        storage = value.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return value

    sums = []
    for images in (1, 2):
        kept.clear()
        with saved_tensors_hooks(keep, lambda value: value):
            pass_bytes(real, config, images)
        sums.append(sum(kept.values()))
    assert sums[1] - sums[0] == pytest.approx(off.saved, rel=0.25)


def test_a_storage_counts_once_and_as_long_as_it_is_there():
    with Alive() as alive:
        one = torch.ones(100)
        view = one[:10]
        one += 1
        assert alive.bytes == alive.most == 400
        del one
        assert alive.bytes == 400  # the view holds it
        del view
        assert alive.bytes == 0
        torch.ones(50)
    assert (alive.bytes, alive.most) == (0, 400)


def test_images_fit_into_nine_tenths_of_what_the_training_leaves():
    memory = StepMemory(resident=100, fixed=90, each=30, saved=25)
    assert memory.of(3) == 280
    assert memory.most(1100) == 27 and memory.most(250) == 1 and memory.most(100) == 0
