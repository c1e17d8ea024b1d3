"""How well the tokenizer gives images back, and how much of its codebook it uses. Torch alone.

Errors are on pixels in [-1, 1], so the peak-to-peak range of the PSNR is 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from nvg.evaluation.metrics import DISTANCE, SHARE, Figure, bootstrap, mean
from nvg.granularity import GranularitySequence

Decode = Callable[[GranularitySequence, int], Tensor]  # Autoencoder.decode: (sequence, stages) -> (N, C, H, W)
GREATEST_ERROR = 4.0  # of pixels in [-1, 1]
LEAST_ERROR = 1e-10  # below, the PSNR takes an image for an exact copy


def mean_squared_error(images: Tensor, reconstructions: Tensor) -> Tensor:
    """The error of each image: two (N, C, H, W) in [-1, 1] -> (N,) float64. Raises ValueError for other shapes."""
    if images.shape != reconstructions.shape:
        raise ValueError(f"images {tuple(images.shape)} and reconstructions {tuple(reconstructions.shape)} differ")
    return (images.double() - reconstructions.double()).square().mean(dim=(1, 2, 3))


def psnr(squared_error: Tensor) -> Tensor:
    """10 log10(2^2 / MSE) in dB, elementwise. An exact copy gives 106 dB, not infinity, so that means stay finite."""
    return 10.0 * torch.log10(GREATEST_ERROR / squared_error.clamp_min(LEAST_ERROR))


def mse_by_stages(images: Tensor, sequence: GranularitySequence, decode: Decode) -> Tensor:
    """The error of every preview: entry [:, n-1] is that of the first n stages, (N, K + 1) float64."""
    stages = range(1, sequence.last_stage + 2)
    return torch.stack([mean_squared_error(images, decode(sequence, count)) for count in stages], dim=1)


def code_counts(sequence: GranularitySequence, codebook_size: int) -> Tensor:
    """How often each entry of the codebook stands at each stage: (K + 1, V) int64, on the CPU."""
    return torch.stack([torch.bincount(tokens.flatten().cpu(), minlength=codebook_size) for tokens in sequence.content])


@dataclass(frozen=True)
class CodebookUse:
    """Use of a codebook of V entries. A stage of N images holds N * 2^i tokens: its share is at most N * 2^i / V."""

    share: float  # of the entries, used at any stage
    share_by_stage: list[float]  # K + 1 numbers
    perplexity: float  # exp of the entropy of their use over all tokens: V when all are equally frequent
    perplexity_by_stage: list[float]


def codebook_use(counts: Tensor) -> CodebookUse:
    """The use that counts (K + 1, V) show; counts add up over batches and workers."""
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


class ReconstructionFigures:
    """The tokenizer's figures over many batches."""

    def __init__(self) -> None:
        self.errors: list[Tensor] = []
        self.counts: list[Tensor] = []
        self.distances: list[Tensor] = []
        self.images = 0

    def add(self, errors: Tensor, counts: Tensor, distances: Tensor | None = None) -> None:
        """errors: (n, K + 1) of `mse_by_stages`; counts: (batches, K + 1, V) of `code_counts`, one a batch; distances:
        LPIPS (n,), where its weights are given."""
        self.errors.append(errors)
        self.counts.append(counts.long())
        self.images += len(errors)
        if distances is not None:
            self.distances.append(distances)

    def figures(self, *, replicates: int, seed: int = 0) -> dict[str, Figure | list[float] | float]:
        """Errors and LPIPS as means over images, use of the codebook with the spread of resampled batches.

        Raises ValueError when no image was added.
        """
        if self.images == 0:
            raise ValueError("no images were measured: evaluate.reconstructions must be at least 1")
        errors, counts = torch.cat(self.errors), torch.cat(self.counts)
        use = codebook_use(counts.sum(dim=0))
        best_psnr = 10.0 * math.log10(GREATEST_ERROR / LEAST_ERROR)
        result: dict[str, Figure | list[float] | float] = {
            "reconstruction_mse": mean(errors[:, -1], limits=(0.0, GREATEST_ERROR)),
            "reconstruction_psnr": mean(psnr(errors[:, -1]), limits=(0.0, best_psnr)),
            "reconstruction_mse_by_stages": errors.mean(dim=0).tolist(),
        }
        if self.distances:
            result["reconstruction_lpips"] = mean(torch.cat(self.distances), limits=DISTANCE)
        result["codebook_use"] = bootstrap(
            lambda rows: codebook_use(counts[rows].sum(dim=0)).share, len(counts), replicates, seed, limits=SHARE
        )
        result["codebook_use_by_stage"] = use.share_by_stage
        result["codebook_perplexity"] = use.perplexity
        return result
