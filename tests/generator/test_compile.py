"""torch.compile takes all that is sampled and trained whole: no graph breaks and no complex numbers."""

import os
import subprocess
import sys
import warnings

import pytest
import torch
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd

from nvg.generator import ContentGenerator, StructureGenerator
from nvg.generator.halving import euler_step, flow_start, halve
from nvg.generator.nucleus import pick
from nvg.granularity import GranularitySequence, codes_from_map, structure_codes, structure_map
from tests.support.generators import awake, content_at, content_config, sampler_of, structure_at, structure_config


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
@pytest.mark.parametrize(("form", "checkpointing"), [("positions", False), ("clusters", False), ("clusters", True)])
@pytest.mark.parametrize("part", ["content", "structure"])
def test_a_generator_is_one_graph_without_complex_numbers_forward_and_backward(part, form, checkpointing):
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


SCRIPT = """
import os
import torch
from torch._dynamo.utils import counters
from torch._inductor import compile_fx
from nvg.generator.compiled import cache_folder, compiled
from nvg.generator.nucleus import pick

print(cache_folder(), flush=True)
arguments = torch.arange(16.0).view(1, 2, 8).sin(), torch.ones(1), torch.ones(1), torch.full((1, 2), 0.5)
for _ in range(2):  # two processes, forked from one that has imported everything and compiled nothing
    if not (child := os.fork()):
        with torch.inference_mode():
            tokens = compiled(pick, mode="reduce-overhead")(*arguments)
        assert torch.equal(tokens, pick(*arguments))
        print(counters["inductor"]["fxgraph_cache_miss"], counters["inductor"]["fxgraph_cache_hit"], flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""


@pytest.mark.slow
def test_a_second_process_finds_compiled_code_at_home(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "TORCHINDUCTOR_CACHE_DIR"}
    environment["HOME"] = str(tmp_path)
    # What is compiled does not matter here: one g++, not many on the machine's instructions and on headers.
    environment |= {"TORCHINDUCTOR_VEC_ISA_OK": "0", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    environment |= {"TORCHINDUCTOR_CPP_CACHE_PRECOMPILE_HEADERS": "0"}
    run = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True)
    folder = tmp_path / ".cache" / "nvg" / "compiled"
    assert run.stdout.splitlines() == [str(folder), "1 0", "0 1"], run.stderr
    assert any(folder.iterdir())


@pytest.mark.parametrize("stage", [0, 1, 3, 4])
def test_the_steps_of_a_stage_are_one_graph_each(stage):
    """The quantizer's, the halving and the choice of tokens: traced whole, and the eager results to the last bit."""
    rng = torch.Generator().manual_seed(0)
    quantizer = sampler_of("positions").tokenizer.quantizer
    whole = structure_codes(torch.randn(2, 16, 8, generator=rng))
    codes = codes_from_map(structure_map(whole, stage), stage)
    uniform, ones = torch.rand(2, 16, generator=rng), torch.ones(2)
    tokens = torch.randint(64, (2, 2**stage), generator=rng)
    logits = torch.randn(2, 2**stage, 64, generator=rng)
    noise = torch.randn(2, 16, 4, generator=rng)
    calls = [
        (quantizer.increment, stage, tokens, structure_map(codes, stage)),
        (quantizer.tokenize, torch.randn(2, 16, 32, generator=rng), whole),
        (pick, logits, 0.8 * ones, 0.9 * ones, uniform[:, : 2**stage]),
    ]
    if stage < 4:
        calls += [(flow_start, codes, noise, stage), (euler_step, noise, noise + 1, ones, stage)]
        calls += [(halve, stage + 1, codes, noise[..., 0], ones, uniform, rename) for rename in (False, True)]
    for function, *arguments in calls:
        whole_graph = torch.compile(function, dynamic=False, fullgraph=True, backend="eager")
        with torch.inference_mode():
            found, expected = whole_graph(*arguments), function(*arguments)
        if isinstance(found, GranularitySequence):
            found, expected = found.flat_content(), expected.flat_content()
        assert torch.equal(found, expected)
