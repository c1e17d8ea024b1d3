"""Other image generators from PyPI at the same picture size, in turns with ours. All with random weights.

diffusers ships DiT-XL/2 (a class-conditional diffusion transformer) and aMUSEd-256 (a masked generator of 16x16 tokens,
from text), each run by its own pipeline with guidance and decoder, their sizes those that were published. It ships no
next-scale generator. aMUSEd's text encoder is left out: its outputs are random.

All steps of a peer do the same work, so a few are run and the seconds multiplied, as `scaled` says. TFLOP: of the whole
batch, exact. seconds: of the whole batch, medians over `rounds`, decode included. "of nvg": against d16 (smoke: the
tests' configuration) with guidance folded in, one pass a stage, not scaled.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import (
    TableRow,
    Target,
    Value,
    in_turns,
    peak_memory,
    randomized,
    replaced,
    say,
    seconds,
    text,
    timed,
    weights_mb,
)
from benchmarks.schedules import BATCHES, build, configured, draw, operations, parts_of
from nvg.describe import flops


@dataclass(frozen=True)
class Peer:
    """A pipeline of diffusers: sample(images, steps) runs it; steps: the numbers of steps of a whole picture."""

    network: Any
    decoder: Any
    sample: Callable[[int, int], object]
    steps: tuple[int, ...]

    @property
    def parts(self) -> dict[str, list[Target]]:
        """The callables that are timed, by part."""
        return {"denoiser": [(self.network, "forward")], "decode": [(self.decoder, "decode")]}


def dit(size: str) -> Peer:
    """DiT-XL/2 at 256x256 with the decoder of Stable Diffusion, by DDIM; smoke: a tiny one."""
    from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel

    full = size == "full"
    widths = (128, 256, 512, 512) if full else (32, 64)
    shape = (
        {"num_layers": 28, "num_attention_heads": 16, "attention_head_dim": 72, "sample_size": 32}
        if full
        else {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 16, "sample_size": 8}
    )
    network = DiTTransformer2DModel(in_channels=4, out_channels=8, patch_size=2, **shape)
    decoder = AutoencoderKL(
        block_out_channels=widths,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        layers_per_block=2 if full else 1,
    )
    pipeline = DiTPipeline(randomized(network), randomized(decoder), DDIMScheduler())
    pipeline.set_progress_bar_config(disable=True)

    def sample(images: int, steps: int) -> object:
        return pipeline(list(range(images)), num_inference_steps=steps, output_type="np")

    return Peer(network, decoder, sample, (50, 250))


def amused(size: str) -> Peer:
    """aMUSEd-256 without its text encoder; smoke: a tiny one. Twelve steps, as its pipeline has them."""
    from diffusers import AmusedPipeline, AmusedScheduler, UVit2DModel, VQModel

    full = size == "full"
    text = 768 if full else 32
    shape = (
        {"sample_size": 16}
        if full
        else {
            "sample_size": 8,
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "in_channels": 32,
            "block_out_channels": 32,
            "block_num_heads": 2,
            "num_res_blocks": 1,
            "vocab_size": 64,
            "codebook_size": 32,
            "cond_embed_dim": text,
            "encoder_hidden_size": text,
            "micro_cond_encode_dim": 8,
            "micro_cond_embed_dim": 40,
        }
    )
    network = UVit2DModel(**shape)
    widths = (128, 256, 256, 512, 768) if full else (32, 64)
    decoder = VQModel(
        block_out_channels=widths,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        layers_per_block=2 if full else 1,
        latent_channels=64 if full else 16,
        num_vq_embeddings=network.config.codebook_size,
        mid_block_add_attention=False,
        lookup_from_codebook=True,
    )
    scheduler = AmusedScheduler(mask_token_id=network.config.vocab_size - 1)
    pipeline = AmusedPipeline(randomized(decoder), None, None, randomized(network), scheduler)
    pipeline.set_progress_bar_config(disable=True)

    def sample(images: int, steps: int) -> object:
        pooled, words = torch.randn(images, text), torch.randn(images, 77, text)
        return pipeline(
            prompt_embeds=pooled,
            encoder_hidden_states=words,
            negative_prompt_embeds=pooled,
            negative_encoder_hidden_states=words,
            num_inference_steps=steps,
            output_type="np",
        )

    return Peer(network, decoder, sample, (12,))


@dataclass(frozen=True)
class Times:
    """The seconds of a batch: the generator's networks, the decoder, and all else."""

    generator: float
    decode: float
    rest: float

    def scaled(self, factor: float) -> Times:
        """The same with `factor` times the steps; the picture is decoded once."""
        return Times(factor * self.generator, self.decode, factor * self.rest)

    @property
    def total(self) -> float:
        """The seconds of all three."""
        return self.generator + self.decode + self.rest


def run(size: str) -> list[TableRow]:
    """The rows of every batch and generator."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is fetched: sizes are written here, weights are random
    depth = "d16" if size == "full" else "smoke"
    torch.manual_seed(0)
    peers = {"DiT-XL/2": dit(size), "aMUSEd-256": amused(size)}
    say("peers: operations, of one image and one step")
    counts = {name: counted_step(peer) for name, peer in peers.items()}
    return [row for images in BATCHES for row in compare(size, depth, peers, counts, images)]


def counted_step(peer: Peer) -> dict[str, int]:
    """Operations of one step and of decoding, of one image with guidance; it is also the peer's warm-up."""
    operations_of: dict[str, int] = {}

    def wrap(part: str, call: Callable) -> Callable:
        def inner(*arguments: Any, **named: Any) -> Any:
            results = []
            operations_of[part] = flops(lambda: results.append(call(*arguments, **named)))
            return results[0]

        return inner

    with replaced(peer.parts, wrap):
        peer.sample(1, 1)
    return operations_of


def compare(
    size: str, depth: str, peers: Mapping[str, Peer], counts: Mapping[str, Mapping[str, int]], images: int
) -> list[TableRow]:
    """Ours and the peers in turns."""
    full = size == "full"
    rounds, steps = (2, 2) if not full or images == 1 else (1, 1)  # a step at batch 8 takes half a minute
    say(f"peers: batch {images}")
    sampler = build(configured(depth), "guided")

    def ours() -> Times:
        with timed(parts_of(sampler)) as calls:
            total = seconds(lambda: draw(sampler, "guided", images, 1))
        decode = sum(calls["decode"])
        generator = sum(calls["structure"]) + sum(calls["content"])
        return Times(generator, decode, total - generator - decode)

    def theirs(peer: Peer) -> Times:
        with timed(peer.parts) as calls:
            total = seconds(lambda: peer.sample(images, steps))
        generator, decode = sum(calls["denoiser"]), sum(calls["decode"])
        return Times(generator, decode, total - generator - decode)

    nvg = f"nvg {depth}, guided"
    variants: dict[str, Callable[[], tuple[Times, float | None]]] = {nvg: partial(peak_memory, ours)}
    for name, peer in peers.items():
        variants[name] = partial(peak_memory, partial(theirs, peer))
    measured = in_turns(variants, rounds, warmup=() if full and images > 1 else variants)
    reference = _median([times for times, _ in measured[nvg]])

    def row(name: str, case: str, flop: int, factor: float, weights: float, scaled: str) -> TableRow:
        times = _median([times for times, _ in measured[name]]).scaled(factor)
        peaks = [peak for _, peak in measured[name] if peak is not None]
        values: dict[str, Value] = {
            "TFLOP": flop / 1e12,
            "rounds": rounds,
            "seconds": times.total,
            "of nvg": times.total / reference.total,
            "generator": times.generator,
            "decode": times.decode,
            "rest": times.rest,
            "scaled": scaled,
            "MB at the peak": max(peaks, default=None),
            "MB of weights": weights,
        }
        return TableRow(f"batch {images}, {case}", values)

    ours_mb = weights_mb(sampler.content, sampler.structure, sampler.tokenizer.decoder)
    rows = [row(nvg, nvg, sum(operations(depth, "guided", images).values()), 1, ours_mb, "no")]
    for name, peer in peers.items():
        weights = weights_mb(peer.network, peer.decoder.decoder)
        for whole in peer.steps:
            flop = images * (whole * counts[name]["denoiser"] + counts[name]["decode"])
            scaled = f"{steps} of {whole} steps run"
            rows.append(row(name, f"{name}, {whole} steps", flop, whole / steps, weights, scaled))
    return rows


def _median(times: Sequence[Times]) -> Times:
    def middle(name: str) -> float:
        return statistics.median(getattr(each, name) for each in times)

    return Times(middle("generator"), middle("decode"), middle("rest"))


def plot(rows: Sequence[TableRow], path: Path) -> None:
    """Draw the seconds per image, on a logarithmic scale."""
    from matplotlib import pyplot

    shown = list(reversed(rows))
    figure, axes = pyplot.subplots(figsize=(9, 0.4 * len(shown) + 1.2), layout="constrained")
    for place, row in enumerate(shown):
        images = int(row.case.split(",")[0].split()[1])
        each = float(row.values["seconds"] or 0) / images
        axes.barh(place, each, color="#1f5fa8" if "nvg" in row.case else "#999999")
        label = f"{text(each)} s, {text(float(row.values['TFLOP'] or 0) / images)} TFLOP"
        axes.annotate(label, (each, place), (4, 0), textcoords="offset points", va="center", fontsize=9)
    axes.set_yticks(range(len(shown)), [row.case for row in shown])
    axes.set_xscale("log")
    axes.set_xlim(right=8 * max(axes.get_xlim()))
    axes.set_xlabel("seconds an image; the peers' by a few steps")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
