"""What the models of capacity count, on torch's meta device: operations, parameters and bytes of a training."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch

from nvg import config as configuration
from nvg.autoencoder import Autoencoder
from nvg.describe import Counter, feature_bytes, forward_flops, parameters, row_bytes
from nvg.generator import ContentGenerator, StructureGenerator
from nvg.granularity import GranularitySequence
from nvg.training.generator_loss import Generators
from nvg.training.tokenizer_loss import tokenizer_loss
from nvg.training.tokenizer_task import TokenizerTask


@dataclass(frozen=True)
class Counts:
    """The operations, parameters and bytes of a training, per image where not said otherwise."""

    flops: float  # forward and backward
    backward: float  # the share of them that is backward
    ops: float  # operations that the host starts for a slice, whatever its images
    parameters: int  # whose gradients are exchanged
    item_bytes: int  # of an image or token row as it is read
    feature_bytes: int = 0  # of the alignment features of a row
    convolutions: bool = False  # the tokenizer, which has a rate of its own
    split: bool = False  # train.parallel=fsdp


def _count(images: int, loss: Callable[[], torch.Tensor]) -> tuple[float, float, int]:
    """Operations of forward and backward an image, of forward alone, and operations started."""
    no_autocast = mock.patch("torch.autocast", lambda *_, **__: contextlib.nullcontext())  # it knows no meta device
    with no_autocast, Counter() as counter:
        value = loss()
        forward = counter.flops
        value.backward()
    return counter.flops / images, forward / images, counter.ops


@functools.cache
def generator_counts(path: str, *settings: str) -> Counts:
    """The counts of both generators, of all stages of an image."""
    config, images = configuration.load(path, settings), 2
    positions, repa = config.tokenizer.positions, config.repa
    with torch.device("meta"):
        quantizer = Autoencoder(config.tokenizer).quantizer.requires_grad_(False)
        content, structure = ContentGenerator(config.content), StructureGenerator(config.structure)
        both = Generators(content, structure, quantizer, config.train, repa.weight)
        sequence = GranularitySequence.from_flat(
            torch.empty(images, positions, dtype=torch.int64), torch.empty(images, 2 * positions - 1, dtype=torch.int64)
        )
        labels = torch.empty(images, dtype=torch.int64)
        features = torch.empty(images, positions, repa.feature_width) if repa.weights is not None else None
    for part in (content, structure):
        part.backbone.gradient_checkpointing = config.train.gradient_checkpointing
    draws = torch.Generator().manual_seed(0)
    total, forward, ops = _count(images, lambda: both(sequence, labels, both.draw(images, draws), features)[0])
    return Counts(
        total,
        1 - forward / total,
        ops,
        parameters(both),
        row_bytes(config),
        feature_bytes(config),
        split=config.train.parallel == "fsdp",
    )


@functools.cache
def tokenizer_counts(path: str, image_kb: float) -> Counts:
    """The counts of the tokenizer with LPIPS and, from discriminator_start on, the adversarial loss, as a mean.
    Clustering is left out (it holds no matrix product), and so is the first epoch's soft assignment."""
    from transformers import ViTConfig, ViTModel

    from nvg.frozen.dino import DinoBackbone
    from nvg.frozen.lpips import LPIPS
    from nvg.training.discriminator import Discriminator, LogitAverages

    config = configuration.load(path)
    settings, size = config.tokenizer_train, config.tokenizer.image_size
    with torch.device("meta"):
        autoencoder, lpips = Autoencoder(config.tokenizer), LPIPS()
        small = ViTConfig(hidden_size=384, num_attention_heads=6, intermediate_size=1536)  # dino-vits16
        discriminator = Discriminator(DinoBackbone(ViTModel(small, add_pooling_layer=False)))
        images = torch.empty(1, config.tokenizer.channels, size, size)
    codes = torch.empty(1, config.tokenizer.positions, dtype=torch.int64, device="meta")
    logits = LogitAverages().to("meta")
    sums = torch.zeros(3, device="meta")
    task: Any = SimpleNamespace(discriminator=discriminator, settings=settings, logits=logits, _logits=sums)
    draws = torch.Generator().manual_seed(0)

    def loss(adversarial: bool) -> torch.Tensor:
        value, _, output = tokenizer_loss(autoencoder, images, settings, warm_up=False, lpips=lpips)
        return value + TokenizerTask._adversarial(task, images, output.reconstruction, draws)[0] * adversarial

    # Clusters follow from the values of latents, which a meta tensor has not.
    with mock.patch.object(autoencoder.quantizer, "structure_codes", lambda latents: codes):
        plain = _count(1, lambda: tokenizer_loss(autoencoder, images, settings, warm_up=False, lpips=lpips)[0])
        whole = _count(1, lambda: loss(True))
    share = settings.discriminator_start
    total, forward, ops = (share * a + (1 - share) * b for a, b in zip(plain, whole, strict=True))
    learned = parameters(autoencoder) + parameters(discriminator.heads)
    return Counts(total, 1 - forward / total, ops, learned, round(image_kb * 1e3), convolutions=True)


@functools.cache
def encoding_flops(path: str, *settings: str) -> tuple[float, float]:
    """The operations of building an image's tokens: the encoder's, and DINOv2's where alignment features are made."""
    from transformers import Dinov2Config, Dinov2Model

    from nvg.frozen.dinov2 import DinoFeatures

    config = configuration.load(path, settings)
    if config.repa.weights is None:
        return forward_flops(config)["encoder"], 0.0
    with torch.device("meta"):  # dinov2-base
        dino = DinoFeatures(Dinov2Model(Dinov2Config(hidden_size=768, num_attention_heads=12, patch_size=14)))
        image = torch.empty(1, 3, config.tokenizer.image_size, config.tokenizer.image_size)
    with Counter() as counter:
        dino(image, config.tokenizer.grid)
    return forward_flops(config)["encoder"], float(counter.flops)
