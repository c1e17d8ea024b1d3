"""How well the tokenizer gives images back, and how much of its codebook it uses. Torch alone.

Errors are on pixels in [-1, 1], so the peak-to-peak range of the PSNR is 2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from nvg.granularity import GranularitySequence

Decode = Callable[[GranularitySequence, int], Tensor]  # Autoencoder.decode: (sequence, stages) -> (N, C, H, W)


def mean_squared_error(images: Tensor, reconstructions: Tensor) -> Tensor:
    """Of each image: two (N, C, H, W) in [-1, 1] -> (N,) float64. Raises ValueError when the shapes differ."""
    if images.shape != reconstructions.shape:
        raise ValueError(f"images {tuple(images.shape)} and reconstructions {tuple(reconstructions.shape)} differ")
    return (images.double() - reconstructions.double()).square().mean(dim=(1, 2, 3))


def psnr(squared_error: Tensor) -> Tensor:
    """10 log10(2^2 / MSE) in dB, elementwise. An exact copy gives 106 dB, not infinity, so that means stay finite."""
    return 10.0 * torch.log10(4.0 / squared_error.clamp_min(1e-10))


def mse_by_stages(images: Tensor, sequence: GranularitySequence, decode: Decode) -> Tensor:
    """The error of every preview: entry [:, n-1] is that of the first n stages, (N, K + 1) float64."""
    stages = range(1, sequence.last_stage + 2)
    return torch.stack([mean_squared_error(images, decode(sequence, count)) for count in stages], dim=1)


def code_counts(sequence: GranularitySequence, codebook_size: int) -> Tensor:
    """How often each code stands at each stage: (K + 1, V) int64, on the CPU."""
    return torch.stack([torch.bincount(tokens.flatten().cpu(), minlength=codebook_size) for tokens in sequence.content])


@dataclass(frozen=True)
class CodebookUse:
    """Use of a codebook of V codes. A stage of N images holds N * 2^i tokens, so its share is at most N * 2^i / V."""

    share: float  # of the codes, used at any stage
    share_by_stage: list[float]  # K + 1 numbers
    perplexity: float  # exp of the entropy of code use over all tokens: V when all are equally frequent
    perplexity_by_stage: list[float]


def codebook_use(counts: Tensor) -> CodebookUse:
    """From counts (K + 1, V), which add up over batches and workers."""
    total = counts.sum(dim=0)
    return CodebookUse(
        share=_share(total),
        share_by_stage=[_share(row) for row in counts],
        perplexity=_perplexity(total),
        perplexity_by_stage=[_perplexity(row) for row in counts],
    )


def _share(counts: Tensor) -> float:
    return float((counts > 0).double().mean())


def _perplexity(counts: Tensor) -> float:
    frequency = counts.double() / counts.sum().clamp_min(1)
    return float(torch.exp(torch.special.entr(frequency).sum()))


class ReconstructionMeter:
    """Figures over many batches: `add` each, `merge` what other workers hold, read `figures`."""

    def __init__(self, codebook_size: int, last_stage: int) -> None:
        self.counts = torch.zeros(last_stage + 1, codebook_size, dtype=torch.int64)
        self.squared_error = torch.zeros(last_stage + 1, dtype=torch.float64)  # sums over images, by stages decoded
        self.psnr = 0.0
        self.images = 0

    @torch.no_grad()
    def add(self, images: Tensor, sequence: GranularitySequence, decode: Decode) -> None:
        """images: (N, C, H, W) in [-1, 1], of which `sequence` is the encoding."""
        errors = mse_by_stages(images, sequence, decode).cpu()
        self.squared_error += errors.sum(dim=0)
        self.psnr += float(psnr(errors[:, -1]).sum())
        self.counts += code_counts(sequence, self.counts.shape[1])
        self.images += images.shape[0]

    def merge(self, other: ReconstructionMeter) -> None:
        """Take another meter's images in."""
        self.counts += other.counts
        self.squared_error += other.squared_error
        self.psnr += other.psnr
        self.images += other.images

    def figures(self) -> dict[str, float | int | list[float]]:
        """images, mse, psnr (dB, mean over images), mse_by_stages, codebook_share(_by_stage), codebook_perplexity.

        Raises ValueError when no image was added.
        """
        if self.images == 0:
            raise ValueError("no images were measured: evaluate.reconstructions must be at least 1")
        use = codebook_use(self.counts)
        errors = (self.squared_error / self.images).tolist()
        return {
            "images": self.images,
            "mse": errors[-1],
            "psnr": self.psnr / self.images,
            "mse_by_stages": errors,
            "codebook_share": use.share,
            "codebook_share_by_stage": use.share_by_stage,
            "codebook_perplexity": use.perplexity,
        }
