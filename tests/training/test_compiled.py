"""train.compile: the losses and gradients of blocks as they are, few graphs whatever the depth, no graph break."""

from functools import partial

import pytest
import torch
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.utils import counters

from nvg.generator.block import Block
from nvg.generator.rope import axis_widths, rotary_table
from nvg.training.compiled import compile_blocks
from nvg.training.generator_task import GeneratorTask
from nvg.training.loop import train
from nvg.training.seeds import seed_dropout, seeded
from tests.support.generators import awake
from tests.support.toy import toy_settings
from tests.support.toy_config import toy_config
from tests.support.toy_streams import CLASSES, CPU, QUICK, autoencoder_of, token_stream

REPA = {"weights": "somewhere", "feature_width": 6, "block": 1}
DEPTHS = {"content": {"depth": 5}, "structure": {"depth": 4}}


@pytest.fixture(autouse=True)
def fresh_graphs():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def counting(graphs):
    """A backend that traces and differentiates as any other, runs the operations one by one, and keeps each graph."""

    def compiler(graph, inputs):
        graphs.append(graph)
        return make_boxed_func(graph)

    return aot_autograd(fw_compiler=compiler, bw_compiler=lambda graph, inputs: make_boxed_func(graph))


def task_of(**changes):
    """The training of both generators, no longer at its beginning, when blocks are the identity."""
    config = toy_config(train=QUICK | changes, repa=REPA, **DEPTHS)
    autoencoder = autoencoder_of(config)
    stream = token_stream(autoencoder, features=6)
    task = GeneratorTask(config, autoencoder, stream, 12, class_names=CLASSES, device=CPU)
    for module in task.modules.values():
        awake(module).train()
    return task


def losses_and_gradients(task):
    """Terms and gradients of a step in which blocks are left out by chance."""
    for module in task.modules.values():
        module.zero_grad()
        for block in module.modules():
            if isinstance(block, Block) and block.drop_rate > 0:
                block.drop_rate = 0.3
    seed_dropout(7, CPU)
    loss, terms = task.loss(task.draw(next(task.batches(0)), seeded(0)), 0, seeded(0))
    loss.backward()
    gradients = {name: value.grad.clone() for name, value in task.bare.named_parameters() if value.grad is not None}
    return {name: term.detach() for name, term in terms.items()}, gradients


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_step_is_that_of_the_blocks_as_they_are_in_five_graphs(checkpointing):
    task, graphs = task_of(gradient_checkpointing=checkpointing), []
    expected = losses_and_gradients(task)
    names = list(task.bare.state_dict())
    compile_blocks(task.bare, counting(graphs))
    for _ in range(2):
        found = losses_and_gradients(task)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    # First and other blocks, 5 and 4 deep; of the structure also the last one, which keeps some tokens alone.
    assert not counters["graph_break"] and counters["stats"]["unique_graphs"] == len(graphs) == 5
    assert list(task.bare.state_dict()) == names


def test_the_setting_compiles_the_blocks_and_off_is_the_default(monkeypatch):
    """What is compiled is the generators that are trained, not the ones that a preview draws with."""
    compiled = []
    monkeypatch.setattr("nvg.training.generator_task.compile_blocks", compiled.append)
    task_of()
    assert compiled == []
    task = task_of(compile=True)
    assert compiled == [task.bare]
    task._fresh()
    assert len(compiled) == 1


@pytest.mark.slow
def test_a_training_with_compiled_blocks_is_resumed_under_the_same_names(tmp_path, monkeypatch):
    monkeypatch.setattr("nvg.training.generator_task.compile_blocks", partial(compile_blocks, backend=counting([])))
    settings, ended = toy_settings(total_steps=6, checkpoint_every=3), {}
    for on in (False, True):
        task = task_of(compile=on, parts=["structure"])
        if on:  # stopped, and gone on with
            task.stream = token_stream(task.tokenizer, stop_at=4)
            with pytest.raises(InterruptedError):
                train(task, settings, toy_config(), str(tmp_path / str(on)))
            task = task_of(compile=on, parts=["structure"])
        figures = train(task, settings, toy_config(), str(tmp_path / str(on)))
        assert figures["resumed_from"] == (3 if on else 0)
        ended[on] = figures["loss"], task.averaged()
    assert ended[True][0] == pytest.approx(ended[False][0], rel=1e-3)
    torch.testing.assert_close(ended[True][1], ended[False][1], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.timeout(900)  # the compiler of C++ has minutes to do on a busy machine
def test_by_torch_s_own_compiler_a_block_is_as_it_is():
    block, rng = awake(Block(128, drop_rate=0.5)).train(), torch.Generator().manual_seed(0)
    x, condition = torch.randn(4, 5, 128, generator=rng), torch.randn(4, 2, 128, generator=rng)
    table = rotary_table(torch.zeros(4, 5, 11), axis_widths(8))
    results = []
    for _ in range(2):
        block.zero_grad()
        torch.manual_seed(0)
        out = block(x, condition, table, [2, 3])
        out.square().mean().backward()
        results.append((out.detach(), {name: value.grad.clone() for name, value in block.named_parameters()}))
        compile_blocks(block)
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)
    assert counters["stats"]["unique_graphs"] == 1
