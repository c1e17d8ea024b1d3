"""Which options make a training step faster on this machine? Ratios to the plain step, tokenizer and generators.

    python -m benchmarks.step_time [--config conf/fashion_mnist.yaml] [--threads 1] [--rounds 5]

Random images and tokens; forward, backward and optimizer. Variants take turns within each round, so that a machine
whose speed drifts does not favour one of them; the ratio is that of the medians.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from datetime import date

import torch
from torch import nn

from nvg import config as configuration
from nvg.autoencoder import Autoencoder
from nvg.config import Config
from nvg.generator import ContentGenerator, StructureGenerator
from nvg.granularity import GranularitySequence
from nvg.training.compiled import compile_blocks
from nvg.training.generator_loss import Generators

STEPS = 4  # of a variant in a round

Step = Callable[[], None]


def tokenizer_step(
    config: Config, *, bfloat16: bool = False, channels_last: bool = False, compiled: bool = False
) -> Step:
    """One training step of the tokenizer without its optional losses."""
    torch.manual_seed(0)
    model = Autoencoder(config.tokenizer)
    images = torch.rand(
        config.tokenizer_train.batch_size, config.tokenizer.channels, *[config.tokenizer.image_size] * 2
    )
    if channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs leave it out
        images = images.contiguous(memory_format=torch.channels_last)
    if compiled:
        model.encoder.compile()
        model.decoder.compile()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            output = model(images * 2 - 1)
        loss = (output.reconstruction.float() - (images * 2 - 1)).square().mean() + output.quantized.codebook_loss
        loss.backward()
        optimizer.step()

    return step


def generator_step(config: Config, *, bfloat16: bool = False, compiled: bool = False) -> Step:
    """One training step of both generators."""
    torch.manual_seed(0)
    quantizer = Autoencoder(config.tokenizer).quantizer.requires_grad_(False)
    content, structure = ContentGenerator(config.content), StructureGenerator(config.structure)
    count, positions = config.train.batch_size, config.tokenizer.positions
    codes = torch.stack([torch.arange(positions)] * count)
    tokens = torch.randint(config.tokenizer.codebook_size, (count, 2 * positions - 1))
    sequence = GranularitySequence.from_flat(codes, tokens)
    both = Generators(content, structure, quantizer, config.train)
    both.begin(sequence)
    if compiled:
        compile_blocks(both)
    labels = torch.randint(config.data.num_classes, (count,))
    optimizer = torch.optim.AdamW([*content.parameters(), *structure.parameters()], lr=1e-4)
    rng = torch.Generator().manual_seed(0)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            loss, _ = both(sequence, labels, both.draw(count, rng))
        loss.backward()
        nn.utils.clip_grad_norm_(both.parameters(), 1.0)
        optimizer.step()

    return step


def measure(variants: dict[str, Step], rounds: int) -> dict[str, float]:
    """The median seconds of a step of each variant."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for step in variants.values():
        step()  # compiles, allocates
    for _ in range(rounds):
        for name, step in variants.items():
            start = time.perf_counter()
            for _ in range(STEPS):
                step()
            seconds[name].append((time.perf_counter() - start) / STEPS)
    return {name: statistics.median(values) for name, values in seconds.items()}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config", default="conf/fashion_mnist.yaml")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    def config(*overrides: str) -> Config:
        return configuration.load(arguments.config, overrides)

    networks = {
        "tokenizer": {
            "plain": tokenizer_step(config()),
            "bfloat16": tokenizer_step(config(), bfloat16=True),
            "channels_last": tokenizer_step(config(), channels_last=True),
            "torch.compile": tokenizer_step(config(), compiled=True),
            "patch 1 (no space-to-depth)": tokenizer_step(
                config("tokenizer.patch=1", "tokenizer.widths=[24,24,48,64]")
            ),
        },
        "generators": {
            "plain": generator_step(config()),
            "bfloat16": generator_step(config(), bfloat16=True),
            "train.compile": generator_step(config(), compiled=True),
            "bfloat16, train.compile": generator_step(config(), bfloat16=True, compiled=True),
            "position tokens": generator_step(config("content.tokens=positions", "structure.canvas_tokens=positions")),
            "content d3": generator_step(config("content.depth=3")),
            "content d4": generator_step(config("content.depth=4")),
            "structure d4": generator_step(config("structure.depth=4")),
        },
    }
    print(
        f"{arguments.config}, {arguments.threads} threads, {platform.processor() or platform.machine()}, "
        f"torch {torch.__version__}, {date.today()}\n"
    )
    print("| step | variant | ms | times the plain one |\n| --- | --- | --- | --- |")
    for network, variants in networks.items():
        medians = measure(variants, arguments.rounds)
        for name, seconds in medians.items():
            print(f"| {network} | {name} | {1000 * seconds:.0f} | {seconds / medians['plain']:.2f} |", flush=True)


if __name__ == "__main__":
    main()
