"""Small checkpoints of the released layout, all weights by the recipe."""

from __future__ import annotations

from torch import Tensor

from tests.release.recipe import falling_codebook, keys_and_shapes, weight, weights

STAGES = 9  # of a grid of 16 positions a side


def quantizer(stages: int = STAGES) -> dict[str, Tensor]:
    """The tensors under `quantize.`: 64 codes of 32, a convolution per stage."""
    state = {"quantize.embedding.weight": falling_codebook()}
    for stage in range(stages):
        for name, shape in (("weight", (32, 32, 3, 3)), ("bias", (32,))):
            key = f"quantize.quant_resi.{stage}.{name}"
            state[key] = weight(key, shape)
    return state


def tokenizer() -> dict[str, Tensor]:
    """A tokenizer of widths 128, 256, 128: 64 pixels a side to a grid of 16."""
    return weights(keys_and_shapes("ae_wide")) | quantizer()
