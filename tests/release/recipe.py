"""Random weights of the released system's layout: every number is a function of its key and shape.

The golden numbers beside this file were computed by the released system with these weights, so none need be stored.
weight = RandomState(crc32(key)).standard_normal * std + mean, rounded to bfloat16: numpy keeps that stream for ever.
Keys are the published checkpoints': `nvgformer.` of the generators, `quantize.`, `encoder.`, `decoder.`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import prod, sqrt
from pathlib import Path
from zlib import crc32

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

GOLDEN = Path(__file__).parent / "golden"

# (how a key ends, standard deviation, mean); the first that fits counts
VECTORS_AND_TABLES = (
    (".scale", 0.3, 1.6),
    ("norm.weight", 0.2, 1.0),
    ("embedding.weight", 0.35, 0.0),
)
TABLES = (
    ("class_embed.weight", 0.5, 0.0),
    ("stage_embed.weight", 0.5, 0.0),
    ("content_start_embed", 1.0, 0.0),
    ("bias", 0.1, 0.0),
)
GAINS = (  # what a key contains, gain over sqrt(fan in)
    ("modulation", 0.4),
    ("adaLN", 0.4),
    ("encoder.conv_out", 0.6),
    ("decoder.conv_out", 0.25),
    ("structure_head.linear", 0.12),
    ("cls_head", 4.0),
)


def golden(name: str) -> dict[str, Tensor]:
    """The released system's numbers of one piece: tests/release/golden/NAME.safetensors."""
    return load_file(GOLDEN / f"{name}.safetensors")


def keys_and_shapes(name: str) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of a network: NAME.json beside the golden numbers."""
    return {key: tuple(shape) for key, shape in json.loads((GOLDEN / f"{name}.json").read_text()).items()}


def weights(shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """The recipe's float32 weights, by key."""
    return {key: weight(key, shape) for key, shape in shapes.items()}


def weight(key: str, shape: Sequence[int]) -> Tensor:
    """One tensor of the recipe, float32 with values that bfloat16 holds."""
    std, mean = _scale(key, prod(shape[1:]))
    numbers = np.random.RandomState(crc32(key.encode())).standard_normal(prod(shape)).reshape(shape)
    numbers *= std  # in place: there are 320 million
    numbers += mean
    return rounded(torch.from_numpy(numbers.astype(np.float32)))


def _scale(key: str, fan: int) -> tuple[float, float]:
    for end, std, mean in VECTORS_AND_TABLES:
        if key.endswith(end):
            return std, mean
    if "quant_resi" in key:
        return (0.02 if key.endswith("bias") else 0.5 / sqrt(fan)), 0.0
    for end, std, mean in TABLES:
        if key.endswith(end):
            return std, mean
    return next((gain for part, gain in GAINS if part in key), 1.0) / sqrt(fan), 0.0


def falling_codebook() -> Tensor:
    """The codebook of the small golden runs: the recipe's 64 codes of 32, scaled from 1.5 down to 0.15, float32."""
    return rounded(weight("quantize.embedding.weight", (64, 32)) * torch.linspace(1.5, 0.15, 64)[:, None])


def codebook_head() -> dict[str, Tensor]:
    """The logits' map of the small golden generators, which leans on the codebook so that many codes are drawn."""
    codes, key = falling_codebook(), "nvgformer.cls_head.linear"
    return {
        f"{key}.weight": rounded(2 * codes / 0.7 + weight(f"{key}.weight", (64, 32)) / 5),
        f"{key}.bias": rounded(-codes.square().sum(dim=1) / 0.7 + weight(f"{key}.bias", (64,))),
    }


def rounded(values: Tensor) -> Tensor:
    """float32 numbers that bfloat16 holds."""
    return values.bfloat16().float()
