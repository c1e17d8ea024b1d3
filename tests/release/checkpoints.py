"""Small checkpoints of the released layout: weights by the recipe, and what nobody may take beside them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from tests.release.ours import released_state
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


def other(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same names with other numbers."""
    return {key: value + 0.05 if value.is_floating_point() else value for key, value in state.items()}


def prefixed(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, each name behind a prefix."""
    return {f"{prefix}{key}": value for key, value in state.items()}


def tokenizer_state() -> dict[str, Tensor]:
    """The state_dict of an ae.ckpt: the weights as trained are the ones to take."""
    raw = tokenizer()
    loss = {"loss.discriminator.heads.0.weight": torch.ones(3), "total_visited_codes": torch.zeros(STAGES, 64)}
    return raw | prefixed("ema_model.", other(raw)) | loss


def generators_state() -> dict[str, Tensor]:
    """The state_dict of a d16.ckpt, of depth 2: the averaged weights are the ones to take."""
    averaged = released_state()
    first = {f"first_stage_model.{key}": value for key, value in other(quantizer()).items()}
    return (
        prefixed("nvgformer.", other(averaged))
        | prefixed("ema_model.nvgformer.", averaged)
        | first
        | {"repa_encoder.cls_token": torch.zeros(1, 1, 8)}
    )


def save(path: Path, state: dict[str, Tensor]) -> str:
    """Write a checkpoint as Lightning does; returns its path."""
    content = {
        "epoch": 99,
        "global_step": 500_000,
        "pytorch-lightning_version": "2.3.3",
        "state_dict": state,
        "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_score": None, "best_k_models": {}}},
        "optimizer_states": [{"state": {0: {"step": torch.tensor(5.0), "exp_avg": torch.zeros(4)}}}],
        "lr_schedulers": [],
    }
    torch.save(content, path)
    return str(path)
