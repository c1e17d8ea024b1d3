"""This package's works: samplers, training steps, decoder and tokens. Random weights, random data, made on the device.

Samplers and decoder compute as pipelines/serve.py has them on a GPU: transformers in bfloat16, canvas and decoder in
float32, whose convolutions are in TF32. Training steps are those of the real loop (nvg/training/loop.py), from tokens
or images that are on the device already.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.common import randomized
from benchmarks.device.clock import Measured, Work, free, seconds_of
from benchmarks.loops import loop_of
from benchmarks.report import ROOT
from benchmarks.schedules import PAPER_STEPS, build, configured, draw
from nvg.autoencoder import Autoencoder
from nvg.config import Config
from nvg.describe import flops
from nvg.generator import Sampler
from nvg.precision import set_precision
from nvg.training.generator_task import GeneratorTask
from nvg.training.loop import Loop, Place
from nvg.training.tokenizer_task import TokenizerTask

COUNTED = 4  # images of a call whose operations are counted: what is filled up on a CPU is filled up to four
CLUSTERED = 1024  # images that build_tokens clusters together on a GPU
STEPS = 1_000_000  # of the trainings that are started here
FOLDED, COMPILED = "nvg, guidance folded in", "nvg, guidance folded in, compiled"
TRAINING, BLOCKS = "nvg, all stages", "nvg, all stages, compiled blocks"


@dataclass(frozen=True)
class Setup:
    """What is measured on."""

    device: torch.device
    full: bool  # d16 at 256x256; else the tests' toys
    var: Path | None = None  # a checkout of FoundationVision/VAR

    @property
    def depth(self) -> str:
        """The name of the configuration (benchmarks/schedules.py)."""
        return "d16" if self.full else "smoke"

    @property
    def batches(self) -> Sequence[int]:
        """The batches that are drawn."""
        return (1, 8, 64) if self.full else (1, 2)

    @property
    def micro_batches(self) -> Sequence[int]:
        """The images of a training step: the first number that memory has room for."""
        return (96, 64, 48, 32, 24, 16, 8) if self.full else (2,)


def set_stance(setup: Setup) -> None:
    """Arithmetic as jobs on a GPU have it. Toys stay uncompiled: to compile them takes longer than to run."""
    set_precision("auto", setup.device)
    if not setup.full:
        torch.compiler.set_stance("force_eager")


def fitting(
    counts: Sequence[int], device: torch.device, make: Callable[[int], Callable[[], object]]
) -> tuple[int, Callable[[], object]]:
    """The first of the counts whose call, made by make(count), fits into memory, and the call, which was made once."""
    for count in counts:
        call = fits(make, count)
        if call is not None:
            return count, call
        free(device)
    raise torch.OutOfMemoryError(f"not even {counts[-1]} images fit into memory")


def fits(make: Callable[[int], Callable[[], object]], count: int) -> Callable[[], object] | None:
    """make(count), called once; None where memory has no room, when nothing of it is held any more."""
    try:
        call = make(count)
        call()
    except torch.OutOfMemoryError:
        return None
    return call


# ---- pictures ----


def sampler_of(setup: Setup, schedule: str, form: str) -> Sampler:
    """A sampler on the device, its transformers' blocks in bfloat16."""
    with setup.device:
        sampler = build(configured(setup.depth, form=form), schedule)
    return sampler.to(setup.device, dtype=torch.bfloat16)


def drawn(setup: Setup, sampler: Sampler, schedule: str, case: str) -> Iterator[Work]:
    """Draw every batch by a schedule of one flow step a stage."""
    per_image = flops(lambda: draw(sampler, schedule, COUNTED, 1)) / COUNTED
    for images in setup.batches:
        yield Work("sampling", case, images, partial(draw, sampler, schedule, images, 1), per_image)


def sampling(setup: Setup) -> Iterator[Work]:
    """Few-step schedules, eager: guidance folded in, by cluster and by position tokens, then content of two passes."""
    yield from drawn(setup, sampler_of(setup, "guided", "clusters"), "guided", FOLDED)
    yield from drawn(setup, sampler_of(setup, "few-step", "clusters"), "few-step", "nvg, few-step, content guided")
    yield from drawn(setup, sampler_of(setup, "guided", "positions"), "guided", f"{FOLDED}, position tokens")


def compiled(setup: Setup) -> Iterator[Work]:
    """The best schedule compiled: the batch of one first, then the largest."""
    sampler = sampler_of(setup, "guided", "clusters")
    per_image = flops(lambda: draw(sampler, "guided", COUNTED, 1)) / COUNTED
    sampler.compile(())  # each batch on its first use
    first, *others = setup.batches
    for images in (first, *reversed(others)):
        call = partial(draw, sampler, "guided", images, 1)
        yield Work("sampling", COMPILED, images, call, per_image)


def paper(setup: Setup) -> Iterator[Work]:
    """The paper's schedule, with position tokens: 25 Euler steps a stage, everything twice for guidance."""
    sampler = sampler_of(setup, "paper", "positions")
    steps = PAPER_STEPS if setup.full else 2
    for images in setup.batches:
        call = partial(draw, sampler, "paper", images, steps)
        case = f"nvg, {steps} steps, position tokens"
        yield Work("sampling", case, images, call, warmups=1, profiled=False, most_seconds=1.0)


def first_picture(setup: Setup) -> Iterator[Work | Measured]:
    """Two processes, one after the other, each from a loaded sampler to its first picture (`main` below). The second
    one finds the compiled code on disk; its seconds count, and the first one's are shown as the first call. Of toys,
    which stay uncompiled, one process is enough."""
    command = [sys.executable, "-m", "benchmarks.device.ours", setup.device.type, setup.depth]

    def started() -> dict[str, float]:
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
        figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        return figures

    free(setup.device)
    before = started()["seconds"]
    after = started()["seconds"] if setup.full else before
    yield Measured("first picture", COMPILED, 1, after, 1, before, None, 1.0)


def decoder(setup: Setup) -> Iterator[Work]:
    """The decoder alone, as the sampler has it, eager and compiled."""
    sizes = configured(setup.depth).tokenizer
    with setup.device:
        model = Autoencoder(sizes)
        randomized(model)
        images = setup.batches[-1]
        canvas = torch.randn(images, sizes.positions, sizes.code_width)
    per_image = flops(lambda: decoded(model, canvas[:COUNTED])) / len(canvas[:COUNTED])
    yield Work("decoder", "nvg", images, partial(decoded, model, canvas), per_image)
    model.decoder.compile(dynamic=False)
    yield Work("decoder", "nvg, compiled", images, partial(decoded, model, canvas), per_image)


@torch.inference_mode()
def decoded(model: Autoencoder, canvas: Tensor) -> Tensor:
    """Pictures (N, C, H, W) of canvases (N, L, e)."""
    return model.decode_canvas(canvas)


# ---- tokens ----


def tokens(setup: Setup) -> Iterator[Work]:
    """The works of a tokenizer actor (pipelines/build_tokens.py): encoding batch by batch, clustering and quantization
    of many images at once."""
    config = configured(setup.depth)
    sizes = config.tokenizer
    encoded, clustered = (config.cluster.encode_batch, CLUSTERED) if setup.full else (2, 4)
    with setup.device:
        model = Autoencoder(sizes)
        randomized(model)
        images = torch.rand(encoded, sizes.channels, sizes.image_size, sizes.image_size) * 2 - 1
        latents = torch.randn(clustered, sizes.positions, sizes.code_width)
    with torch.inference_mode():
        codes = model.quantizer.structure_codes(latents)
        encoding = flops(lambda: model.latents(images)) / encoded
    calls: dict[str, tuple[int, Callable[[], object]]] = {
        "encoder": (encoded, lambda: model.latents(images)),
        "clustering": (clustered, lambda: model.quantizer.structure_codes(latents)),
        "quantization": (clustered, lambda: model.quantizer.tokenize(latents, codes)),
    }
    for name, (count, call) in calls.items():
        per_image = encoding if name == "encoder" else None
        yield Work("tokens", name, count, torch.inference_mode()(call), per_image)


# ---- training ----


def generator_config(setup: Setup, images: int, *, blocks: bool) -> Config:
    """Steps of this many images, on cluster tokens."""
    overrides = (f"train.batch_size={images}", "cluster.num_workers=1", f"train.compile={str(blocks).lower()}")
    return configured(setup.depth, *overrides, form="clusters")


def tokenizer_config(setup: Setup, images: int) -> Config:
    """Steps of this many images, without the networks that judge them."""
    return configured(
        setup.depth,
        f"tokenizer_train.batch_size={images}",
        "tokenizer_train.lpips_weights=null",
        "tokenizer_train.discriminator_weights=null",
        "cluster.num_workers=1",
    )


def generator_steps(setup: Setup, images: int, *, blocks: bool) -> tuple[Loop, Callable[[], object]]:
    """The loop of both generators on cluster tokens, all stages of every image, and its steps."""
    config = generator_config(setup, images, blocks=blocks)
    sizes, names = config.tokenizer, [str(index) for index in range(config.data.num_classes)]
    with setup.device:
        tokenizer = Autoencoder(sizes).requires_grad_(False)
        task = GeneratorTask(config, tokenizer, lambda step: iter(()), STEPS, class_names=names, device=setup.device)
        batch = {
            "codes": torch.stack([torch.randperm(sizes.positions) for _ in range(images)]),
            "content": torch.randint(sizes.codebook_size, (images, 2 * sizes.positions - 1)),
            "labels": torch.randint(len(names), (images,)),
        }
    loop = loop_of(task, config.train, config, STEPS, place=Place(device=setup.device))
    return loop, steps_of(loop, batch)


def tokenizer_steps(setup: Setup, images: int) -> tuple[Loop, Callable[[], object]]:
    """The loop of the tokenizer, without the networks that judge it, and its steps."""
    config = tokenizer_config(setup, images)
    sizes = config.tokenizer
    with setup.device:
        task = TokenizerTask(config, lambda step: iter(()), STEPS, 0, device=setup.device)
        shape = (images, sizes.image_size, sizes.image_size, sizes.channels)
        batch = {"images": torch.randint(256, shape, dtype=torch.uint8)}
    loop = loop_of(task, config.tokenizer_train, config, STEPS, place=Place(device=setup.device))
    return loop, steps_of(loop, batch)


def steps_of(loop: Loop, batch: dict[str, Tensor]) -> Callable[[], object]:
    """Each call is the next step of a loop, always on the same batch."""
    for module in loop.task.modules.values():
        module.train()
    stream, numbers = itertools.repeat(batch), itertools.count()
    return lambda: loop.step(next(numbers), stream)


def training(setup: Setup) -> Iterator[Work]:
    """A training step of both generators: as it is, with as many images as memory has room for, and compiled."""
    loops: list[Loop] = []

    def made(images: int) -> Callable[[], object]:
        loops.clear()
        free(setup.device)
        loop, step = generator_steps(setup, images, blocks=False)
        loops.append(loop)
        return step

    images, step = fitting(setup.micro_batches, setup.device, made)
    per_image = loops[0].flops
    yield Work("training", TRAINING, images, step, per_image)
    del step
    loops.clear()
    free(setup.device)
    _, step = generator_steps(setup, images, blocks=True)
    yield Work("training", BLOCKS, images, step, per_image)


def tokenizer(setup: Setup) -> Iterator[Work]:
    """A training step of the tokenizer."""
    images = 32 if setup.full else 2
    loop, step = tokenizer_steps(setup, images)
    yield Work("tokenizer step", "nvg", images, step, loop.flops)


# ---- the process of first_picture ----


def main(device: str, depth: str) -> None:
    """Print the seconds in which a sampler that is loaded comes to its first picture, compiled for one image."""
    setup = Setup(torch.device(device), full=depth == "d16")
    set_stance(setup)
    sampler = sampler_of(setup, "guided", "clusters")
    print(json.dumps({"seconds": seconds_of(lambda: sampler.compile((1,)), setup.device)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
