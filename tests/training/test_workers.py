"""The loop on several workers, processes joined by gloo: who computes a slice or keeps a weight does not matter."""

import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed as distributed
import torch.multiprocessing as multiprocessing
from torch.distributed.tensor import DTensor

from nvg.artifacts import models
from nvg.errors import CheckpointError
from nvg.generator import Sampler
from nvg.generator.block import Block
from nvg.training import checkpoint, generator_task
from nvg.training.compiled import compile_blocks
from nvg.training.generator_task import GeneratorTask
from nvg.training.loop import Place, slice_of, train
from nvg.training.parallel import alone, exchange_gradients, parallelize, plain_strides, whole
from nvg.training.seeds import seeded
from tests.support.generators import awake
from tests.support.recorders import SilentBar
from tests.support.toy import ToyTask, toy_settings
from tests.support.toy_config import toy_config
from tests.support.toy_streams import CLASSES, CPU, QUICK, autoencoder_of, token_stream

SLICES = 4
ROWS = 8
PRELOADED = ("omegaconf", "torch._inductor.compile_fx", "torch.distributed.fsdp")  # what a training imports on its way
LENGTH = {"total_steps": 6, "slices": SLICES, "checkpoint_every": 3, "clip_norm": 0.1}  # every step is clipped
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def toy(place, folder, wrap):
    share = place.share(SLICES)
    mine = slice(share.start * ROWS // SLICES, share.stop * ROWS // SLICES)
    return train_one(ToyTask(wrap=wrap, mine=mine), place, folder)


def compile_structure(both):
    """Traced and differentiated as by train.compile, and run operation by operation, since workers have minutes to do
    otherwise. The structure's blocks alone, since each graph takes a worker a second: these leave segments out, and the
    last one keeps some tokens alone."""
    compile_blocks(both.structure, backend="aot_eager")


def generators(place, folder, wrap, how="ddp", stop_at=None, compiled=False):
    """Both generators, of which each transformer block and the rest are split with fsdp."""
    if compiled:  # in a worker's process alone
        generator_task.compile_blocks = compile_structure
    config = toy_config(train={**QUICK, "parallel": how, "compile": compiled}, content={"depth": 2})
    autoencoder, share = autoencoder_of(config), place.share(SLICES)
    part = slice(share.start * ROWS // SLICES, share.stop * ROWS // SLICES)

    def stream(step):
        for batch in token_stream(autoencoder, stop_at)(step):
            yield {name: value[part] for name, value in batch.items()}

    task = GeneratorTask(config, autoencoder, stream, LENGTH["total_steps"], class_names=CLASSES, device=CPU, wrap=wrap)
    split = {name: isinstance(value, DTensor) for name, value in task.bare.named_parameters()}
    assert all(split.values()) if how == "fsdp" and place.world > 1 else not any(split.values())
    return train_one(task, place, folder)


def train_one(task, place, folder):
    """Weights and averages, whole, and the loss that a training ends with; None where it was stopped."""
    try:
        figures = train(task, toy_settings(**LENGTH), toy_config(), str(folder), place=place)
    except InterruptedError:
        return None
    state = {f"{m}.{k}": whole(v) for m, module in task.modules.items() for k, v in module.state_dict().items()}
    averaged = task.averaged()
    state |= {f"ema {m}.{k}": value for m, part in averaged.items() for k, value in part.items()}
    return state, figures["loss"], figures["resumed_from"], averaged


def gradients(place, folder, wrap, how="fsdp", compiled=False):
    """Of a pass under bfloat16, of this worker's half of a batch: its loss, the gradients, whole, and how much they are
    after two more passes, at most, off three times that; the dtypes that blocks saw of their weights."""
    if compiled:
        torch.compiler.reset()  # the graphs of the trainings before are among those that torch allows of a function
        generator_task.compile_blocks = compile_structure
    train = {**QUICK, "parallel": how, "precision": "bfloat16", "compile": compiled}
    config, seen = toy_config(train=train, content={"depth": 2}), set()
    autoencoder = autoencoder_of(config)

    def awake_wrap(module, *arguments):
        for block in awake(module).train().modules():
            if isinstance(block, Block):
                block.register_forward_hook(lambda block, *_: seen.update(one.dtype for one in block.parameters()))
        return wrap(module, *arguments)

    task = GeneratorTask(
        config, autoencoder, token_stream(autoencoder), 1, class_names=CLASSES, device=CPU, wrap=awake_wrap
    )
    rows = task.draw(next(task.batches(0)), seeded(1))

    def one_pass():
        losses = []
        for half in place.share(2):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                losses.append(task.loss(slice_of(rows, half, 2), 0, seeded(0))[0])
            (losses[-1] * place.world / 2).backward()
        return [float(loss.detach()) for loss in losses]

    losses = one_pass()
    once = {name: whole(value.grad).clone() for name, value in task.bare.named_parameters()}
    for module in task.parallel:
        exchange_gradients(module, False)
    one_pass()
    for module in task.parallel:
        exchange_gradients(module, True)
    one_pass()
    off = max(
        float((whole(value.grad) - 3 * once[name]).norm() / once[name].norm())
        for name, value in task.bare.named_parameters()
    )
    return losses, once, off, seen


def spawn(world, folder, jobs):
    """Do jobs on workers, forked from a process that has imported everything: imports were most of the time."""
    multiprocessing.get_context("forkserver").set_forkserver_preload([__name__, *PRELOADED])
    multiprocessing.start_processes(work, (world, str(folder), jobs), nprocs=world, start_method="forkserver")


def work(rank, world, folder, jobs):
    """A worker: does the jobs, and saves what each ends with."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet-{world}", rank=rank, world_size=world)
    place = Place(rank=rank, world=world, bar=SilentBar)
    for name, (job, arguments) in jobs.items():
        torch.save(job(place, Path(folder) / name, parallelize, *arguments), f"{folder}/{name}-{rank}.pt")
        distributed.barrier()
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """What each training ended with, by its name: a list over its workers."""
    folder = tmp_path_factory.mktemp("workers")
    three = {"toy-3": (toy, ()), "broken": (generators, ("fsdp", 4))}
    two = {name: (generators, (how,)) for name, how in (("ddp", "ddp"), ("fsdp", "fsdp"), ("two", "fsdp"))}
    two |= {f"{how}, compiled": (generators, (how, None, True)) for how in ("ddp", "fsdp")}
    two |= {"bfloat16": (gradients, ()), "bfloat16, compiled": (gradients, ("fsdp", True))}
    two["toy-2"] = (toy, ())
    spawn(3, folder, three)
    for name in ("two", "one"):  # go on from what three workers wrote
        shutil.copytree(folder / "broken", folder / name)
    spawn(2, folder, two)
    place = Place(bar=SilentBar)
    found = {"toy": [toy(place, folder / "toy", alone)], "alone": [generators(place, folder / "alone", alone)]}
    found["one"] = [generators(place, folder / "one", alone)]
    found["bfloat16, alone"] = [gradients(place, folder, alone)]
    for world, jobs in ((3, three), (2, two)):
        found |= {name: [torch.load(folder / f"{name}-{rank}.pt") for rank in range(world)] for name in jobs}
    return found | {"folder": folder}


@pytest.mark.parametrize(
    ("name", "reference", "workers", "resumed"),
    [
        ("toy-2", "toy", 2, 0),
        ("toy-3", "toy", 3, 0),  # one worker has two of the four slices
        ("ddp", "alone", 2, 0),
        ("fsdp", "alone", 2, 0),
        ("ddp, compiled", "alone", 2, 0),
        ("fsdp, compiled", "alone", 2, 0),
        ("two", "alone", 2, 3),  # from a checkpoint that three workers wrote
        ("one", "alone", 1, 3),
    ],
)
def test_any_number_of_workers_trains_as_one(ended, name, reference, workers, resumed):
    expected, expected_loss, *_ = ended[reference][0]
    assert len(ended[name]) == workers
    for state, loss, first, _ in ended[name]:
        assert first == resumed and loss == pytest.approx(expected_loss, rel=1e-4) and state.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(state[key], value, rtol=1e-3, atol=1e-5, msg=key)


@pytest.mark.parametrize(("name", "same"), [("bfloat16", True), ("bfloat16, compiled", False)])
def test_split_weights_are_gathered_and_gradients_sent_in_bfloat16(ended, name, same):
    """What is computed is what autocast computes, to the last bit. Gradients are off by what bfloat16 rounds, 2^-8 at
    most, of a tensor's norm; passes of a step are added in float32."""
    losses, expected, off, seen = ended["bfloat16, alone"][0]
    assert seen == {torch.float32} and off < 1e-6
    for worker, (found, sent, summed, gathered) in enumerate(ended[name]):
        assert found == ([losses[worker]] if same else pytest.approx([losses[worker]], rel=1e-3))
        assert gathered == {torch.bfloat16} and summed < 1e-6 and sent.keys() == expected.keys()
        for key, value in sent.items():
            assert value.dtype == torch.float32 and torch.equal(value, value.bfloat16().float()), key
            assert (value - expected[key]).norm() <= (2**-8 if same else 0.02) * expected[key].norm(), key


def test_each_worker_writes_its_rows_of_a_checkpoint_and_any_number_reads_them(ended):
    assert ended["broken"] == [None] * 3  # stopped at step 4, after a checkpoint at 3
    (path,) = checkpoint.list_checkpoints(str(ended["folder"] / "broken"))
    metadata = checkpoint.checked_metadata(path)
    files = {f"{name}-{shard:05d}-of-00003.safetensors" for name in ("model", "ema", "optimizer") for shard in range(3)}
    assert metadata["shards"] == 3 and set(metadata["files"]) == files | {"config.yaml"}
    sizes = [(Path(path) / f"model-{shard:05d}-of-00003.safetensors").stat().st_size for shard in range(3)]
    assert max(sizes) < 0.5 * sum(sizes)


def test_averages_that_were_split_make_a_sampler(ended, tmp_path):
    config = toy_config(content={"depth": 2})
    folder = str(tmp_path / "sampler")
    weights = autoencoder_of(config).state_dict()
    for shown in ended["fsdp"]:
        assert models.export_sampler(
            folder, tokenizer=weights, parts=shown[3], config=config, class_names=CLASSES, metadata={}
        )
    sampler = models.load_sampler(folder)
    assert isinstance(sampler, Sampler) and sampler.generate(["cat", "dog"], seed=0).shape == (2, 8, 8, 1)


def test_a_lost_shard_is_named(ended, tmp_path):
    shutil.copytree(ended["folder"] / "broken", tmp_path / "lost")
    (path,) = checkpoint.list_checkpoints(str(tmp_path / "lost"))
    (Path(path) / "ema-00001-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match="has no ema-00001-of-00003.safetensors: remove"):
        checkpoint.checked_metadata(path)


def test_slices_are_equal():
    assert [part["x"].tolist() for part in (slice_of({"x": torch.arange(6)}, n, 3) for n in range(3))] == [
        [0, 1],
        [2, 3],
        [4, 5],
    ]


def test_the_gradient_of_a_1x1_convolution_has_the_strides_of_its_weight():
    """Else DDP warns of another layout, and copies."""
    conv = torch.nn.Conv2d(64, 32, 1)
    strides = []
    conv.weight.register_hook(plain_strides)
    conv.weight.register_hook(lambda gradient: strides.append(gradient.stride()))
    image = torch.randn(2, 64, 8, 8).to(memory_format=torch.channels_last)
    conv(image).square().sum().backward()
    assert strides == [conv.weight.stride()] and conv.weight.grad.abs().max() > 0
