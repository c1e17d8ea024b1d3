"""The adversarial loss of the tokenizer: small convolutional heads on frozen DINO features (docs/method.md, section 2).

Design, after StyleGAN-T (Sauer et al., arXiv 2301.09515, section 3.2) and VAR's tokenizer: a self-supervised ViT-S/16
that is never trained gives patch features before its first block and after four, evenly spaced; on each stands a head
with spectral normalisation
    1x1 convolution - norm - leaky ReLU - residual(3x3 convolution - norm - leaky ReLU) - 1x1 convolution
that gives one logit a patch. Two changes: the heads are 2-D convolutions over the patch grid (the sources run 1-D ones
over its raster order), and the norm is GroupNorm, so that a logit does not depend on batch mates or workers.

All images are augmented before they are judged (nvg/training/diffaug.py). The losses are the released system's:

    L_D = 1/2 (mean relu(1 - D(x)) + mean relu(1 + D(x_hat))) + lecam_weight * LeCam
    L_G = mean over images of softplus(-mean D(x_hat))
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
        return torch.cat([head(tap) for head, tap in zip(self.heads, features, strict=True)], dim=1).float()


def load_discriminator(url: str) -> Discriminator:
    """A discriminator with fresh heads on the ViT of a folder, path or URL (`facebook/dino-vits16` on model hubs).

    Raises WeightsError (a FileNotFoundError) when files are missing, ImportError without `transformers`.
    """
    return Discriminator(load_dino(url))


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Half the hinge losses of the discriminator: logits of real and of reconstructed images (any shapes) -> scalar."""
    return 0.5 * (F.relu(1.0 - real).mean() + F.relu(1.0 + fake).mean())


def generator_loss(fake: Tensor) -> Tensor:
    """The decoder's non-saturating loss: logits of reconstructed images (N, logits) -> scalar."""
    return F.softplus(-fake.mean(dim=1)).mean()


class LogitAverages(nn.Module):
    """Moving averages of the logits of real and of reconstructed images, for the LeCam regularisation (Tseng et al.,
    arXiv 2104.03310): real images shall not be judged better than the average reconstruction, nor reconstructions worse
    than the average real image, which keeps a discriminator from growing sure of itself.

    The averages are a buffer, so that checkpoints hold them. They begin at 0 and move once a step, after it, by the
    means over all workers: no number of workers or slices changes them.
    """

    means: Tensor
    DECAY = 0.999

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("means", torch.zeros(2))  # of real images, of reconstructions

    def penalty(self, real: Tensor, fake: Tensor) -> Tensor:
        """mean relu(D(x) - average of D(x_hat))^2 + mean relu(average of D(x) - D(x_hat))^2 -> scalar."""
        average_real, average_fake = self.means
        return F.relu(real - average_fake).square().mean() + F.relu(average_real - fake).square().mean()

    def update(self, means: Tensor) -> None:
        """Take in a step's mean logits, of real images and of reconstructions: (2,)."""
        self.means.lerp_(means, 1.0 - self.DECAY)
