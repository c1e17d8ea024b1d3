"""The multi-scale residual quantizer of next-scale generation (Tian et al., "Visual Autoregressive Modeling",
arXiv 2404.02905, algorithms 1 and 2), with everything else as the granularity quantizer has it.

Scale k is a grid of n_k x n_k tokens; n_k rises to the latent grid. With Z the latent, x_0 = 0, R_0 = Z:
    c_k = nearest entry to the mean of R_k over each cell of the n_k x n_k grid ("area" interpolation)
    x_{k+1} = x_k + phi_k(up(c_k));  R_{k+1} = Z - x_{k+1}
up is bicubic interpolation of the entries to the latent grid. Codebook, phi, losses and the care of unused entries are
ours (nvg/autoencoder/quantizer.py); one phi a scale, as there one a stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nvg.autoencoder import GranularityQuantizer, QuantizerOutput
from nvg.autoencoder.quantizer import first_least
from nvg.config import TokenizerConfig


@dataclass
class ScaleSequence:
    """The tokens of all scales of N images: scale k (N, n_k^2) int64 codebook indices, positions in raster order."""

    content: list[Tensor]

    def flat_content(self) -> Tensor:
        """All scales side by side, coarse to fine: (N, T)."""
        return torch.cat(self.content, dim=1)

    @staticmethod
    def from_flat(flat: Tensor, scales: Sequence[int]) -> ScaleSequence:
        """The inverse of `flat_content`."""
        return ScaleSequence(list(flat.split([side**2 for side in scales], dim=1)))


class ScaleQuantizer(GranularityQuantizer):
    """The quantizer of a tokenizer's configuration on `scales`, which rise to its grid."""

    def __init__(self, config: TokenizerConfig, scales: Sequence[int]) -> None:
        super().__init__(config)
        if list(scales) != sorted(set(scales)) or scales[-1] != self.grid:
            raise ValueError(f"scales {tuple(scales)} must rise to the latent grid, which is {self.grid}")
        if len(scales) > len(self.convolutions):
            raise ValueError(f"{len(scales)} scales: at most {len(self.convolutions)}, the stages of this grid")
        self.scales = tuple(scales)
        self.convolutions = self.convolutions[: len(scales)]  # one phi a scale

    # ---- the formulas ----

    def cells(self, values: Tensor, scale: int) -> Tensor:
        """Means over the cells of scale number `scale`: (N, L, e) -> (N, n^2, e)."""
        planes = values.transpose(1, 2).unflatten(2, (self.grid, self.grid))
        return F.interpolate(planes, self.scales[scale], mode="area").flatten(2).transpose(1, 2)

    def up(self, vectors: Tensor, scale: int) -> Tensor:
        """The vectors of a scale on the latent grid: (N, n^2, e) -> (N, L, e)."""
        side = self.scales[scale]
        if side == self.grid:
            return vectors
        planes = vectors.transpose(1, 2).unflatten(2, (side, side))
        return F.interpolate(planes, self.grid, mode="bicubic").flatten(2).transpose(1, 2)

    def scale_increment(self, scale: int, tokens: Tensor) -> Tensor:
        """x_{k+1} - x_k = phi_k(up(c_k)): tokens (N, n^2) -> (N, L, e)."""
        return self.phi(scale, self.up(F.embedding(tokens, self.codebook), scale))

    def canvases(self, sequence: ScaleSequence, scale_count: int | None = None) -> list[Tensor]:  # type: ignore[override]
        """The canvases x_0 ... x_n of the first n scales (by default all): n + 1 of (N, L, e)."""
        canvas = self.codebook.new_zeros(len(sequence.content[0]), self.grid**2, self.codebook.shape[1])
        result = [canvas]
        for scale, tokens in enumerate(sequence.content[:scale_count]):
            canvas = canvas + self.scale_increment(scale, tokens)
            result.append(canvas)
        return result

    def inputs(self, sequence: ScaleSequence) -> list[Tensor]:
        """What a generator sees of each scale before it: x_k over the cells of scale k, (N, n_k^2, e), k = 0 ... S - 1.
        That of scale 0 is zero."""
        return [self.cells(canvas, scale) for scale, canvas in enumerate(self.canvases(sequence)[:-1])]

    # ---- encoding and training ----

    @torch.no_grad()
    def encode(self, latents: Tensor) -> ScaleSequence:  # type: ignore[override]
        """The tokens of latents (N, L, e)."""
        canvas, content = torch.zeros_like(latents.float()), list[Tensor]()
        for scale in range(len(self.scales)):
            content.append(self.nearest(self.cells(latents.float() - canvas, scale)))
            canvas = canvas + self.scale_increment(scale, content[-1])
        return ScaleSequence(content)

    def forward(self, latents: Tensor, *, soft: bool = False, entropy: bool = False) -> QuantizerOutput:
        """Quantize (N, L, e) for training, with the losses of `GranularityQuantizer.forward`. Raises ValueError for
        its soft assignment and entropy, which no configuration of this experiment has."""
        if soft or entropy:
            raise ValueError("next_scale: set tokenizer_train.index_backprop_epochs=0 and entropy_weight=0")
        latents = latents.float()
        canvas = torch.zeros_like(latents)
        content, residual_means = [], []
        commitment = codebook_loss = latents.new_zeros(())
        for scale in range(len(self.scales)):
            means = self.cells(latents - canvas, scale).detach()
            tokens = first_least(self._squared_distances(means))
            canvas = canvas + self.scale_increment(scale, tokens)
            commitment = commitment + F.mse_loss(latents, canvas.detach()) / len(self.scales)
            codebook_loss = codebook_loss + F.mse_loss(canvas, latents.detach()) / len(self.scales)
            content.append(tokens)
            residual_means.append(means.flatten(0, 1))
        return QuantizerOutput(
            canvas=latents + (canvas - latents).detach(),
            sequence=ScaleSequence(content),  # type: ignore[arg-type]
            commitment=commitment,
            codebook_loss=codebook_loss,
            entropy=latents.new_zeros(()),
            residual_means=torch.cat(residual_means),
        )

    @torch.no_grad()
    def seed_codebook(self, latents: Tensor, rng: torch.Generator) -> None:
        """Start the codebook at what each scale has to say when all before it were said exactly: the cells' means of
        the residual. latents: (N, L, e)."""
        residual, seeds = latents.float(), list[Tensor]()
        for scale in range(len(self.scales)):
            means = self.cells(residual, scale)
            seeds.append(means.flatten(0, 1))
            residual = residual - self.up(means, scale)
        everything = torch.ones(self.codebook.shape[0], dtype=torch.bool, device=self.codebook.device)
        self.revive(everything, torch.cat(seeds), rng)
