"""DINOv2 features: of patches, towards which representation alignment (REPA) pulls the content generator, and of whole
images, on which an evaluation takes a second Fréchet distance.

Sources: Yu et al., "Representation alignment for generation" (arXiv 2410.06940), section 3.2: the last layer's patch
tokens of a frozen encoder, on an image resized so that it has as many patches as the generator has tokens. Stein et
al., "Exposing flaws of generative model evaluation metrics" (arXiv 2306.04675): the class token of the last layer, of
images resized to 224 x 224.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nvg.frozen.dino import IMAGENET_MEAN, IMAGENET_STD
from nvg.frozen.weights import load_vit

_KEY = "repa.weights"
WHOLE_SIDE = 224  # pixels a side of an image whose class token is taken


class DinoFeatures(nn.Module):
    """Frozen DINOv2: one feature vector per latent position, or one per image."""

    mean: Tensor
    std: Tensor

    def __init__(self, vit: Any) -> None:
        """vit: a `transformers` Dinov2Model or Dinov2WithRegistersModel."""
        super().__init__()
        self.vit = vit.eval().requires_grad_(False)
        self.patch = int(vit.config.patch_size)
        self.width = int(vit.config.hidden_size)  # D
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)

    @torch.no_grad()
    def forward(self, images: Tensor, grid: int) -> Tensor:
        """(N, C, H, W) in [-1, 1], C = 1 (repeated) or 3 -> (N, grid * grid, D), positions in raster order."""
        tokens = self._tokens(images, self.patch * grid)
        return tokens[:, -grid * grid :]  # before them stand the class token and, in some models, registers

    @torch.no_grad()
    def class_token(self, images: Tensor) -> Tensor:
        """(N, C, H, W) in [-1, 1], C = 1 (repeated) or 3 -> (N, D), of the images resized to 224 x 224."""
        return self._tokens(images, WHOLE_SIDE)[:, 0]

    def _tokens(self, images: Tensor, side: int) -> Tensor:
        """All tokens of the last layer, normalised, of images resized to `side` pixels a side: (N, T, D)."""
        if images.shape[1] not in (1, 3):
            raise ValueError(f"DINOv2 takes images of 1 or 3 channels, got {images.shape[1]}")
        if tuple(images.shape[2:]) != (side, side):
            images = F.interpolate(images, (side, side), mode="bicubic", antialias=True).clamp(-1.0, 1.0)
        pixels = ((images + 1.0) / 2.0 - self.mean) / self.std
        return self.vit(pixels).last_hidden_state

    def train(self, mode: bool = True) -> DinoFeatures:
        """The network stays in evaluation mode, whatever mode is asked for."""
        return super().train(False)


def load_dinov2(url: str, *, key: str = _KEY, feature_width: int | None = None) -> DinoFeatures:
    """DINOv2 from a folder, path or URL (`facebook/dinov2-base` on model hubs).

    key: of the configuration, for messages. feature_width: repa.feature_width, checked when given. Raises WeightsError
    (a FileNotFoundError) when files are missing, ImportError without `transformers`, ValueError when the width differs.
    """
    features = DinoFeatures(load_vit(url, key=key, class_name="AutoModel", model="facebook/dinov2-base"))
    if feature_width is not None and features.width != feature_width:
        raise ValueError(f"repa.feature_width={feature_width}, but the model of {_KEY}={url} has {features.width}")
    return features
