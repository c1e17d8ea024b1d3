"""A compiled sampler: which shapes it has drawn before it is used, and what its CUDA graphs hold and give back."""

import threading
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch.utils import _pytree as pytree

from benchmarks.kernels import Outside, counted
from nvg.config import SamplerConfig
from nvg.generator import ContentGenerator, Sampler, StructureGenerator
from nvg.generator.controls import given_from_sequence
from nvg.generator.graphs import Graphs, tensors_of
from tests.support.generators import NAMES, awake, every_form, sampler_of

FOREIGN = [f"class {number}" for number in range(12)]
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


class InPlace(Graphs):
    """Graphs of a device that has none: a replay computes again, from the same inputs into the same outputs."""

    def record(self, function):
        outputs = function()
        self.count = getattr(self, "count", 0) + 1

        def replay():
            for place, value in zip(tensors_of(outputs), tensors_of(function()), strict=True):
                if place is not value:
                    place.copy_(value)

        return outputs, replay


def shape_of(value):
    """What torch.compile makes code for: shapes and dtypes of tensors, and other values themselves."""
    return (tuple(value.shape), value.dtype) if isinstance(value, torch.Tensor) else value


@pytest.fixture
def shapes(monkeypatch):
    """Compile nothing, and gather what would be compiled: functions with the shapes of their arguments."""
    seen = set()

    def compiled(function, **options):
        def run(*arguments, **named):
            leaves, tree = pytree.tree_flatten((arguments, named))
            seen.add((function, str(tree), tuple(shape_of(leaf) for leaf in leaves)))
            return function(*arguments, **named)

        return run

    monkeypatch.setattr("nvg.generator.sampler.compiled", compiled)
    monkeypatch.setattr("nvg.autoencoder.layers.Decoder.compile", lambda decoder, **options: None)
    return seen


@pytest.fixture
def in_place(shapes, monkeypatch):
    """Graphs on the CPU, of functions that are not compiled."""
    monkeypatch.setattr("nvg.generator.sampler.graphs_on", InPlace)


def learned(sampler):
    """The same with all guidance folded in."""
    content = awake(ContentGenerator(replace(sampler.content.config, guided=True)))
    structure = awake(StructureGenerator(replace(sampler.structure.config, few_step=True)))
    return Sampler(sampler.tokenizer, content, structure, SamplerConfig(flow_steps=1), sampler.class_names)


def canvases(sampler, classes, **arguments):
    return [step.canvas for step in sampler.stages(classes, **arguments)]


@every_form
@pytest.mark.parametrize("folded", [False, True])
def test_classes_that_were_not_seen_and_other_settings_bring_no_new_shape(form, folded, shapes):
    """Nothing compiles within a request: neither the first logits of one class or two, nor guidance switched off, nor
    another number of flow steps, nor given stages."""
    sampler = sampler_of(form, FOREIGN)
    sampler = (learned(sampler) if folded else sampler).compile((1, 2))
    before = set(shapes)
    sampler.generate([10, 11])
    sampler.generate([9], content_guidance=1.0)
    sampler.generate([7, 8], structure_guidance=[1.0, 2.0], flow_steps=4)
    sampler.generate([5, 6], structure_guidance=1.0, content_guidance=1.0)
    *_, last = sampler.stages([3])
    given = given_from_sequence(last.sequence, structure_stages=2, content_stages=1)
    sampler.generate([4, 5], given=[given, None])
    assert before and shapes == before


@every_form
@pytest.mark.parametrize("folded", [False, True])
def test_graphs_draw_what_the_sampler_draws_without(form, folded, in_place):
    plain = learned(sampler_of(form, FOREIGN)) if folded else sampler_of(form, FOREIGN)
    by_graphs = Sampler(plain.tokenizer, plain.content, plain.structure, plain.settings, FOREIGN).compile((1, 2))
    count = by_graphs._graphs.count
    for classes, seed, settings in [
        ([10, 11], 3, {}),
        ([9], 4, {"content_guidance": 1.0, "structure_guidance": 1.0}),
        ([1, 8], 5, {"content_guidance": [1.5, 1.0], "top_p": [0.5, 0.9], "structure_temperature": 0.0}),
    ]:
        expected, found = (canvases(one, classes, seed=seed, **settings) for one in (plain, by_graphs))
        assert all(map(torch.equal, found, expected))
        assert np.array_equal(*(one.generate(classes, seed=seed, **settings) for one in (plain, by_graphs)))
    assert by_graphs._graphs.count == count  # all were recorded as it was compiled


@every_form
def test_given_stages_and_other_numbers_of_flow_steps_run_without_graphs(form, in_place):
    plain = sampler_of(form)
    by_graphs = Sampler(plain.tokenizer, plain.content, plain.structure, plain.settings, NAMES).compile((2,))
    *_, last = plain.stages([2])
    given = given_from_sequence(last.sequence, structure_stages=2, content_stages=1)
    expected, found = (canvases(one, [0, 1], seed=1, given=[None, given]) for one in (plain, by_graphs))
    assert all(map(torch.equal, found, expected))
    count = by_graphs._graphs.count
    expected, found = (canvases(one, [0, 1], flow_steps=2) for one in (plain, by_graphs))
    assert all(map(torch.equal, found, expected)) and by_graphs._graphs.count == count


def test_two_batches_in_turn_do_not_write_into_each_other(in_place):
    """All replays use the same memory: results are copies of it."""
    plain = sampler_of("clusters")
    by_graphs = Sampler(plain.tokenizer, plain.content, plain.structure, plain.settings, NAMES).compile((1,))
    steps = [(a, b) for a, b in zip(by_graphs.stages([0], seed=1), by_graphs.stages([1], seed=2), strict=True)]
    for label, seed, side in ((0, 1, 0), (1, 2, 1)):
        for step, expected in zip([one[side] for one in steps], plain.stages([label], seed=seed), strict=True):
            assert torch.equal(step.canvas, expected.canvas)
            assert torch.equal(step.sequence_codes, expected.sequence_codes)
            assert all(map(torch.equal, step.content, expected.content))
            assert np.array_equal(step.preview, expected.preview)


def test_moved_weights_are_drawn_without_the_graphs_of_the_old_ones(in_place):
    sampler = sampler_of("positions").compile((1,))
    assert sampler._graphs is not None
    assert sampler.to("cpu", dtype=torch.bfloat16)._graphs is None
    assert sampler.generate([0]).shape == (1, 16, 16, 3)


@every_form
@torch.inference_mode()
def test_around_a_stages_graph_the_host_starts_two_copies_and_one_for_each_result(form, in_place, monkeypatch):
    """A copy for all inputs of a dtype; codes, their order (of clusters alone), canvas and tokens."""
    monkeypatch.setattr(InPlace, "record", lambda graphs, function: (function(), lambda: None))
    sampler = learned(sampler_of(form)).compile((1,))
    state = sampler._start([0], 0, None, {})
    for stage in range(sampler.last_stage + 1):
        starts = counted(Outside(), partial(sampler._draw_stage, stage, state))
        assert starts == (6 if form == "clusters" else 5)


@pytest.mark.parametrize("mode", ["reduce-overhead", "max-autotune"])
def test_a_mode_with_cuda_graphs_of_its_own_is_refused(mode):
    with pytest.raises(ValueError, match=f"mode='{mode}' makes CUDA graphs of its own"):
        sampler_of("positions").compile((1,), mode=mode)


# ---- on a GPU ----


@needs_cuda
@every_form
def test_on_cuda_a_picture_drawn_alone_is_bit_equal_to_the_same_one_in_a_batch_of_8(form):
    sampler = sampler_of(form).to("cuda")
    together = list(sampler.stages([j % 3 for j in range(8)], seed=5))
    for row in range(8):
        for step, whole in zip(sampler.stages([row % 3], seed=5 + row), together, strict=True):
            assert torch.equal(step.canvas[0], whole.canvas[row])
            assert torch.equal(step.sequence_codes[0], whole.sequence_codes[row])
            assert np.array_equal(step.preview[0], whole.preview[row])


@needs_cuda
@every_form
def test_on_cuda_recorded_stages_draw_what_they_draw_without_a_recording_in_any_thread(form, shapes):
    """Of functions that are not compiled, which round alike: bit-equal. The recording thread is not the drawing one."""
    plain = sampler_of(form).to("cuda")
    recorded = Sampler(plain.tokenizer, plain.content, plain.structure, plain.settings, NAMES)
    thread = threading.Thread(target=recorded.compile, args=((1, 2),))
    thread.start()
    thread.join()
    for classes, seed in (([0, 1], 3), ([2], 4)):
        expected, found = (canvases(one, classes, seed=seed) for one in (plain, recorded))
        assert all(map(torch.equal, found, expected))
        assert np.array_equal(*(one.generate(classes, seed=seed) for one in (plain, recorded)))
    assert recorded._graphs is not None and recorded._graphs._recorded
