"""Batches of images: filled up to sizes that change no bit of an image, and turned into pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor


def filled_up(count: int, sizes: Sequence[int]) -> int:
    """The least of the sizes, in rising order, that `count` images fit in; their number where none is so large."""
    return next((size for size in sizes if size >= count > 0), count)


def in_fours(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """A convolutional function of N images, (N, ...) each, on a CPU in a batch filled up to a multiple of four.

    The CPU's convolutions of one and of three images run other kernels, whose sums round differently, and an image must
    not depend, to the last bit, on how many others are drawn with it.
    """
    count = tensors[0].shape[0]
    if tensors[0].device.type != "cpu":
        return function(*tensors)
    filled = (torch.cat((value, value[:1].expand(-count % 4, *value.shape[1:]))) for value in tensors)
    return function(*filled)[:count]


def to_pixels(images: Tensor) -> np.ndarray:
    """Float images in [-1, 1], (N, C, H, W), as uint8 (N, H, W, C)."""
    pixels = ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).cpu().numpy()
