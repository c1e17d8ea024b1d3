"""Between its stages the sampler never waits for the device: no number is read from it, and none is moved to it.

Shown on the meta device, which has shapes and no numbers: what a GPU would have to wait for raises there.
"""

from dataclasses import replace

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from nvg.config import SamplerConfig
from nvg.generator import ContentGenerator, Sampler, StructureGenerator
from nvg.generator.controls import given_from_sequence
from nvg.granularity import GranularitySequence
from tests.support.generators import NAMES, awake, every_form, sampler_of


class NothingOnTheCpu(TorchDispatchMode):
    """Raises AssertionError for an operation of which a tensor is on the CPU: it would be copied there or from it."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in torch.utils._pytree.tree_leaves((args, kwargs, result)):
            assert not isinstance(value, torch.Tensor) or value.device.type != "cpu", f"{func} has a tensor on the CPU"
        return result


class NoTensorOfNumbers(TorchFunctionMode):
    """Raises AssertionError for a tensor that is made of Python's numbers, a list as an index included."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        assert func not in (torch.tensor, torch.as_tensor, torch.Tensor.new_tensor), f"{func} of numbers"
        if func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            assert not any(isinstance(one, list) for one in index), "a list as an index"
        return func(*args, **(kwargs or {}))


def samplers(form):
    """Guidance by two passes and several steps, and all of it learned."""
    plain = sampler_of(form)
    content = awake(ContentGenerator(replace(plain.content.config, guided=True)))
    structure = awake(StructureGenerator(replace(plain.structure.config, few_step=True)))
    return plain, Sampler(plain.tokenizer, content, structure, SamplerConfig(flow_steps=1), NAMES)


def some_given():
    """Nothing, two stages of structure and one of content, and everything."""
    codes = torch.arange(16)[None]
    whole = GranularitySequence(codes, [torch.zeros(1, 2**stage, dtype=torch.int64) for stage in range(5)])
    given = (given_from_sequence(whole, structure_stages=n, content_stages=m) for n, m in ((2, 1), (4, 5)))
    return [None, *given]


@every_form
@pytest.mark.parametrize("given", [False, True])
@torch.inference_mode()
def test_no_stage_waits_for_the_device(form, given):
    for sampler in samplers(form):
        sampler = sampler.to("meta")
        settings = {"content_guidance": [1.0, 2.0, 3.0]}
        state = sampler._start([0, 1, 2], 3, some_given() if given else None, settings)
        with NothingOnTheCpu(), NoTensorOfNumbers():
            tokens = [sampler._draw_stage(stage, state) for stage in range(sampler.last_stage + 1)]
        assert [one.shape for one in tokens] == [(3, 2**stage) for stage in range(5)]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@every_form
@torch.inference_mode()
def test_no_stage_waits_for_a_gpu(form):
    for sampler in samplers(form):
        sampler = sampler.to("cuda")
        sampler.generate([0, 1, 2])  # libraries wait as they start
        state = sampler._start([0, 1, 2], 3, some_given(), {})
        torch.cuda.set_sync_debug_mode("error")
        try:
            for stage in range(sampler.last_stage + 1):
                sampler._draw_stage(stage, state)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.tolist(),
        lambda x: x[0].item(),
        lambda x: bool((x > 0).all()),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x[[0, 1]],
        lambda x: x.cpu(),
        lambda x: torch.tensor([1.0], device="meta") + x,
        lambda x: x.new_tensor([1.0]) + x,
        lambda x: torch.as_tensor(1.0, device="meta") + x,
        lambda x: x + torch.tensor([1.0]).to("meta"),
    ],
    ids=[
        "tolist",
        "item",
        "bool",
        "nonzero",
        "mask",
        "list as index",
        "cpu",
        "tensor",
        "new_tensor",
        "as_tensor",
        "to the device",
    ],
)
def test_what_waits_is_seen(wait):
    x = torch.ones(3, device="meta")
    with NothingOnTheCpu(), NoTensorOfNumbers(), pytest.raises((AssertionError, RuntimeError, NotImplementedError)):
        wait(x)
