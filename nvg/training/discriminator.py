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

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from nvg.frozen.dino import TAPS, DinoBackbone, load_dino


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
    return Discriminator(load_dino(url))


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
