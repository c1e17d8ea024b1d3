"""DINO patch features, on which the tokenizer's discriminator stands its heads (nvg/training/discriminator.py)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nvg.frozen.weights import load_vit

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
TAPS = 5  # places whose features are judged: before the first block, and after four
MINIMUM_PATCHES = 8  # a side: smaller images are enlarged, for 2x2 patches of a 32-pixel image say nothing

_KEY = "tokenizer_train.discriminator_weights"


class DinoBackbone(nn.Module):
    """Frozen ViT: images to patch features before its first block and after evenly spaced ones, the last among them.

    Gradients flow to the images.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, vit: Any) -> None:
        """vit: a `transformers.ViTModel`."""
        super().__init__()
        self.vit = vit.eval().requires_grad_(False)
        self.patch = int(vit.config.patch_size)
        self.width = int(vit.config.hidden_size)
        depth = int(vit.config.num_hidden_layers)
        if depth < TAPS - 1:
            raise ValueError(f"{_KEY}: a ViT of {depth} blocks, the discriminator reads after {TAPS - 1}")
        self.blocks = [depth * tap // (TAPS - 1) for tap in range(TAPS)]  # 0, 3, 6, 9, 12 of a ViT-S
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(N, C, H, W) in [-1, 1], C = 1 or 3 -> TAPS tensors (N, width, rows, columns)."""
        pixels = self.preprocess(images)
        rows, columns = (side // self.patch for side in pixels.shape[2:])
        hidden = self.vit(pixels, output_hidden_states=True, interpolate_pos_encoding=True).hidden_states
        # Hidden state 0 is the embedding; token 0 is the class token.
        return [hidden[block][:, 1:].transpose(1, 2).unflatten(2, (rows, columns)) for block in self.blocks]

    def preprocess(self, images: Tensor) -> Tensor:
        """ImageNet normalisation, grey repeated, sides resized to the nearest multiple of the patch size."""
        if images.shape[1] not in (1, 3):
            raise ValueError(f"the discriminator takes images of 1 or 3 channels, got {images.shape[1]}")
        height, width = (max(MINIMUM_PATCHES, round(side / self.patch)) * self.patch for side in images.shape[2:])
        if (height, width) != tuple(images.shape[2:]):
            images = F.interpolate(images, (height, width), mode="bilinear", antialias=True)
        return ((images + 1.0) / 2.0 - self.mean) / self.std  # broadcasting repeats a grey channel

    def train(self, mode: bool = True) -> DinoBackbone:
        """The backbone stays in evaluation mode, whatever mode is asked for."""
        return super().train(False)


def load_dino(url: str) -> DinoBackbone:
    """DINO from a folder, path or URL (`facebook/dino-vits16` on model hubs).

    Raises WeightsError (a FileNotFoundError) when files are missing, ImportError without `transformers`.
    """
    return DinoBackbone(
        load_vit(url, key=_KEY, class_name="ViTModel", model="facebook/dino-vits16", add_pooling_layer=False)
    )
