"""The adversarial loss of the tokenizer: small convolutional heads on frozen DINO features (docs/method.md, section 2).

Design, after StyleGAN-T (Sauer et al., arXiv 2301.09515, section 3.2) and VAR's tokenizer: a self-supervised ViT-S/16
that is never trained gives patch features after four blocks, evenly spaced; on each stands a head with spectral
normalisation
    1x1 convolution - norm - leaky ReLU - residual(3x3 convolution - norm - leaky ReLU) - 1x1 convolution
that gives one logit a patch. Two changes: the heads are 2-D convolutions over the patch grid (the sources run 1-D ones
over its raster order), and the norm is GroupNorm, so that a logit does not depend on batch mates or workers.

    L_D = mean relu(1 - D(x)) + mean relu(1 + D(x_hat));  L_G = -mean D(x_hat);  weight of L_G: `adaptive_weight`
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from nvg.autoencoder.weights import load_vit

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
TAPS = 4  # blocks whose features are judged
MINIMUM_PATCHES = 8  # a side: smaller images are enlarged, for 2x2 patches of a 32-pixel image say nothing

_KEY = "tokenizer_train.discriminator_weights"


class DinoBackbone(nn.Module):
    """Frozen ViT: images to patch features after evenly spaced blocks. Gradients flow to the images."""

    mean: Tensor
    std: Tensor

    def __init__(self, vit: Any) -> None:
        """vit: a `transformers.ViTModel`."""
        super().__init__()
        self.vit = vit.eval().requires_grad_(False)
        self.patch = int(vit.config.patch_size)
        self.width = int(vit.config.hidden_size)
        depth = int(vit.config.num_hidden_layers)
        if depth < TAPS:
            raise ValueError(f"{_KEY}: a ViT of {depth} blocks, the discriminator reads {TAPS}")
        self.blocks = [depth * (tap + 1) // TAPS for tap in range(TAPS)]  # 3, 6, 9, 12 of a ViT-S
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
        """Stays in evaluation mode, whatever its owner does."""
        return super().train(False)


class DiscriminatorHead(nn.Module):
    """Logits of one tap: (N, width, rows, columns) -> (N, rows * columns)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        groups = next(groups for groups in (32, 16, 8, 4, 2, 1) if width % groups == 0)
        self.project = spectral_norm(nn.Conv2d(width, width, 1))
        self.norm1 = nn.GroupNorm(groups, width)
        self.mix = spectral_norm(nn.Conv2d(width, width, 3, padding=1))
        self.norm2 = nn.GroupNorm(groups, width)
        self.logit = spectral_norm(nn.Conv2d(width, 1, 1))

    def forward(self, features: Tensor) -> Tensor:
        hidden = F.leaky_relu(self.norm1(self.project(features)), 0.2)
        hidden = (hidden + F.leaky_relu(self.norm2(self.mix(hidden)), 0.2)) / 2**0.5
        return self.logit(hidden).flatten(1)


class Discriminator(nn.Module):
    """Frozen backbone and trained heads: images -> logits. `heads` alone has state worth saving."""

    def __init__(self, backbone: DinoBackbone) -> None:
        super().__init__()
        self.backbone = backbone
        self.heads = nn.ModuleList(DiscriminatorHead(backbone.width) for _ in range(TAPS))

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) in [-1, 1] -> (N, TAPS * rows * columns) logits, high for real images."""
        features = self.backbone(images)
        return torch.cat([head(tap) for head, tap in zip(self.heads, features, strict=True)], dim=1)


def load_discriminator(url: str) -> Discriminator:
    """A discriminator with fresh heads on the ViT of a folder, path or URL (`facebook/dino-vits16` on model hubs).

    Raises WeightsError (a FileNotFoundError) when files are missing, ImportError without `transformers`.
    """
    vit = load_vit(url, key=_KEY, class_name="ViTModel", model="facebook/dino-vits16", add_pooling_layer=False)
    return Discriminator(DinoBackbone(vit))


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Hinge loss of the discriminator: logits of real and of reconstructed images (any shapes) -> scalar."""
    return F.relu(1.0 - real).mean() + F.relu(1.0 + fake).mean()


def generator_loss(fake: Tensor) -> Tensor:
    """The decoder's adversarial loss: logits of reconstructed images -> scalar."""
    return -fake.mean()


def adaptive_weight(
    reconstruction_loss: Tensor, adversarial_loss: Tensor, last_layer: Tensor, *, maximum: float = 1e4
) -> Tensor:
    """lambda = |grad L_rec| / (|grad L_G| + 1e-4) at the decoder's last layer, clamped to [0, maximum]; no gradient.

    VQGAN (Esser et al., arXiv 2012.09841), eq. 7: it keeps the adversarial term as strong as the reconstruction term.
    last_layer: the weight parameter. Both losses keep their graphs; the call adds no gradient to any parameter.
    """
    (reconstruction,) = torch.autograd.grad(reconstruction_loss, last_layer, retain_graph=True)
    (adversarial,) = torch.autograd.grad(adversarial_loss, last_layer, retain_graph=True)
    return (reconstruction.norm() / (adversarial.norm() + 1e-4)).clamp(0.0, maximum).detach()
