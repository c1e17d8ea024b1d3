"""torch.compile takes the networks whole: no graph breaks and no complex numbers, forward and backward."""

import warnings

import pytest
import torch
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd

from nvg.generator import ContentGenerator, StructureGenerator
from nvg.granularity import structure_codes
from tests.support.generators import awake, content_at, content_config, structure_at, structure_config


@pytest.fixture(autouse=True)
def fresh_graphs():
    """No graph of another test, and a warning, as of complex numbers, is an error."""
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def training_step(model, call):
    """The outputs of call() and all gradients."""
    model.zero_grad()
    outputs = call()
    sum((number + 1) * one.square().mean() for number, one in enumerate(outputs)).backward()
    return [one.detach() for one in outputs], {
        name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None
    }


def dtypes_seen(seen):
    """A backend: traced and differentiated as for any other, and run operation by operation. seen: is filled with the
    dtypes of all values of the graphs."""

    def compiler(graph, inputs):
        values = (leaf for node in graph.graph.nodes for leaf in torch.utils._pytree.tree_leaves(node.meta.get("val")))
        seen.update(value.dtype for value in values if isinstance(value, torch.Tensor))
        return make_boxed_func(graph)

    return aot_autograd(fw_compiler=compiler, bw_compiler=compiler)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["positions", "clusters"])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("part", ["content", "structure"])
def test_a_generator_is_one_graph_without_complex_numbers_forward_and_backward(part, checkpointing, form):
    """Outputs and gradients are the eager ones to 1e-4: the rotation is in real numbers here, complex there."""
    rng = torch.Generator().manual_seed(0)
    canvases = list(torch.randn(5, 2, 16, 32, generator=rng))
    codes, labels = structure_codes(torch.randn(2, 16, 8, generator=rng)), torch.tensor([0, 1])
    torch.manual_seed(0)
    if part == "content":
        model = ContentGenerator(content_config(2, 4, form, repa_block=1, repa_width=5))
        stages = [0, 2, 4]

        def call():
            differences, aligned = content_at(model, stages, [canvases[stage] for stage in stages], codes, labels)
            return [*differences, *aligned]
    else:
        model = StructureGenerator(structure_config(2, 4, form, few_step=True))
        stages, noisy = [1, 3], list(torch.randn(2, 2, 16, 4, generator=rng))
        some = torch.rand(2, 2, generator=rng)

        def call():
            inputs = [canvases[stage] for stage in stages], codes, labels
            return structure_at(model, stages, noisy, some, *inputs, steps=some, guidance=1 + some)

    awake(model).train()
    model.backbone.gradient_checkpointing = checkpointing
    for block in model.backbone.blocks:
        block.drop_rate = 0.0  # chance
    expected = training_step(model, call)
    seen = set()
    model.compile(dynamic=False, fullgraph=True, backend=dtypes_seen(seen))
    found = training_step(model, call)
    assert torch.float32 in seen and not any(dtype.is_complex for dtype in seen)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
