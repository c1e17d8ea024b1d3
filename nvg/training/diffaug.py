"""Differentiable augmentation of the images that a discriminator judges (DiffAugment, Zhao et al., arXiv 2006.10738).

Colour, translation by up to an eighth of a side, and a square of half a side cut out: the paper's policy. Real images
and reconstructions go through the same kinds of change, so the discriminator cannot learn a data set by heart, and
gradients flow through to the decoder.
"""

from __future__ import annotations

import torch
from torch import Tensor

TRANSLATION = 1 / 8  # of a side, at most, each way
CUTOUT = 1 / 2  # of a side


def augment(images: Tensor, rng: torch.Generator) -> Tensor:
    """(N, C, H, W) in [-1, 1] -> the same shape, each image with draws of its own. rng: on the CPU."""
    return cut_out(translate(recolour(images, rng), rng), rng)


def recolour(images: Tensor, rng: torch.Generator) -> Tensor:
    """Brightness + U(-1/2, 1/2), saturation * U(0, 2), contrast * U(1/2, 3/2); values may leave [-1, 1]."""
    brightness, saturation, contrast = torch.rand(3, len(images), 1, 1, 1, generator=rng).to(images)
    images = images + (brightness - 0.5)
    grey = images.mean(dim=1, keepdim=True)  # (N, 1, H, W)
    images = (images - grey) * (2.0 * saturation) + grey
    mean = images.mean(dim=(1, 2, 3), keepdim=True)  # (N, 1, 1, 1)
    return (images - mean) * (contrast + 0.5) + mean


def translate(images: Tensor, rng: torch.Generator) -> Tensor:
    """Move each image by whole pixels; zeros come in at the border."""
    rows, columns = (_shifted(images, axis, rng) for axis in (2, 3))
    return _take(_take(images, 2, rows), 3, columns)


def cut_out(images: Tensor, rng: torch.Generator) -> Tensor:
    """Set a rectangle of half an image's sides to zero, as far as it lies within the image."""
    rows, columns = (_struck(images, axis, rng) for axis in (2, 3))  # (N, H), (N, W)
    return images * ~(rows[:, None, :, None] & columns[:, None, None, :])


def _shifted(images: Tensor, axis: int, rng: torch.Generator) -> Tensor:
    """Where each place of an axis gets its pixel from: (N, side), some outside."""
    side = images.shape[axis]
    most = int(side * TRANSLATION + 0.5)
    shift = torch.randint(-most, most + 1, (len(images), 1), generator=rng)
    return (torch.arange(side) + shift).to(images.device)


def _take(images: Tensor, axis: int, places: Tensor) -> Tensor:
    """The pixels at places of an axis, zero outside."""
    side = images.shape[axis]
    shape = [len(images), 1, 1, 1]
    shape[axis] = side
    inside = ((places >= 0) & (places < side)).view(shape)
    taken = images.take_along_dim(places.clamp(0, side - 1).view(shape), dim=axis)
    return taken * inside


def _struck(images: Tensor, axis: int, rng: torch.Generator) -> Tensor:
    """Which places of an axis the square covers: (N, side) bool. Its centre is any place, the border's too."""
    side = images.shape[axis]
    size = int(side * CUTOUT + 0.5)
    first = torch.randint(0, side + (1 - size % 2), (len(images), 1), generator=rng) - size // 2
    place = torch.arange(side)
    return ((place >= first) & (place < first + size)).to(images.device)
