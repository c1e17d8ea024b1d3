"""The precision of arithmetic: the only place that tells torch, by the setting `precision`.

| precision | convolutions | matrix products | transformers' blocks |
| --- | --- | --- | --- |
| float32 | float32 | float32 | float32 |
| tf32 | TF32 | TF32 | float32 numbers, TF32 products |
| bfloat16 | TF32 | float32 | bfloat16; in a training all that autocast takes, convolutions too |
| auto | TF32 | float32 | in a training as bfloat16 where a GPU has it, else float32 |

TF32 is of GPUs: products of float32 numbers with 10 bits of fraction, sums in float32. A CPU has none, and computes in
float32. Some results stay in float32 whatever is set: an image's tokens are the entries nearest to its latents, and of
rounded distances the nearest is often another one (`exact_products`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def set_precision(precision: str, device: torch.device, *, training: bool = False) -> torch.dtype:
    """Tell torch, in this process, how to compute on a device; returns the dtype of transformers' blocks and, in a
    training, of autocast."""
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = precision != "float32"
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    return dtype_of(precision, device, training=training)


def dtype_of(precision: str, device: torch.device, *, training: bool = False) -> torch.dtype:
    """The dtype that `set_precision` returns; torch is told nothing."""
    half = precision == "bfloat16" or (
        precision == "auto"
        and training
        and device.type == "cuda"
        and torch.cuda.is_bf16_supported(including_emulation=False)
    )
    return torch.bfloat16 if half else torch.float32


@contextmanager
def exact_products() -> Iterator[None]:
    """Matrix products in float32 within this context, whatever `set_precision` was told; for a process in which one
    thread computes."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
