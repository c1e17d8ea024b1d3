"""The granularity quantizer: residual quantization over clusters, on one codebook shared by all stages.

docs/method.md, section 1, with s_i the structure maps of the latent Z:
    R_0 = Z;  c_i = nearest entry to the mean of R_i over each cluster of s_i
    x_{i+1} = x_i + phi_i(assign(c_i, s_i));  R_{i+1} = Z - x_{i+1};  x_0 = 0
phi_i blends a 3x3 convolution with the identity, half and half. x_{K+1} is the quantized latent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nvg.config import TokenizerConfig
from nvg.granularity import (
    GranularitySequence,
    assign,
    cluster_means,
    positions_of_codes,
    structure_codes,
    structure_map,
    take,
)
from nvg.precision import exact_products

BLOCK = 32  # entries whose least distance is compared before the entries themselves
CACHED_DISTANCES = 2**20  # on a CPU at a time: 4 MB, which its cache holds; twice as fast
DEVICE_DISTANCES = 2**28  # on a GPU at a time: 1 GB


@dataclass
class QuantizerOutput:
    """The results of quantizing N latents for training."""

    canvas: Tensor  # (N, L, e), x_{K+1} with a straight-through gradient to Z
    sequence: GranularitySequence
    commitment: Tensor  # mean over stages of |Z - sg(x)|^2, a scalar
    codebook_loss: Tensor  # mean over stages of |sg(Z) - x|^2, a scalar
    entropy: Tensor  # E[H(p)] - H(E[p]) of the soft assignment, a scalar; 0 where it was not asked for
    residual_means: Tensor  # (N * (2L - 1), e) the vectors that entries should represent: seeds for unused entries


class GranularityQuantizer(nn.Module):
    """The codebook of V entries (V, e), one phi per stage, and the walk over the stages."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.grid = config.grid
        self.last_stage = config.last_stage
        self.child_order = config.child_order
        self.codebook = nn.Parameter(torch.empty(config.codebook_size, config.code_width))
        nn.init.normal_(self.codebook, std=0.5)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(config.code_width, config.code_width, 3, padding=1) for _ in range(config.last_stage + 1)
        )
        for convolution in self.convolutions:  # phi starts as the identity
            for name, parameter in convolution.named_parameters():
                nn.init.dirac_(parameter) if name == "weight" else nn.init.zeros_(parameter)

    # ---- the formulas ----

    def phi(self, stage: int, values: Tensor) -> Tensor:
        """phi_i: (N, L, e) -> (N, L, e), half identity, half 3x3 convolution."""
        planes = values.transpose(1, 2).unflatten(2, (self.grid, self.grid))
        return 0.5 * values + 0.5 * self.convolutions[stage](planes).flatten(2).transpose(1, 2)

    def structure_codes(self, latents: Tensor) -> Tensor:
        """Structure codes under this tokenizer's names of children: (N, L, e) -> (N, L)."""
        return structure_codes(latents, self.child_order)

    def increment(self, stage: int, tokens: Tensor, structure_map: Tensor) -> Tensor:
        """x_{i+1} - x_i = phi_i(assign(c_i, s_i)): tokens (N, 2^i), structure_map (N, L) -> (N, L, e)."""
        # Tokens are placed and then looked up: the same as assign(vectors), for a sixteenth of the numbers moved.
        return self.phi(stage, F.embedding(tokens.gather(1, structure_map), self.codebook))

    def canvases(self, sequence: GranularitySequence, stage_count: int | None = None) -> list[Tensor]:
        """The canvases x_0 ... x_n of the first n = stage_count stages (by default all K + 1): n + 1 of (N, L, e)."""
        stage_count = self.last_stage + 1 if stage_count is None else stage_count
        if not 0 <= stage_count <= self.last_stage + 1:
            raise ValueError(f"stage_count={stage_count} is none of 0 ... {self.last_stage + 1}")
        canvas = self.codebook.new_zeros(*sequence.codes.shape, self.codebook.shape[1])
        result = [canvas]
        for stage in range(stage_count):
            canvas = canvas + self.increment(stage, sequence.content[stage], sequence.structure_map(stage))
            result.append(canvas)
        return result

    def nearest(self, vectors: Tensor) -> Tensor:
        """Indices of the nearest entries in l2: (..., e) -> (...) int64."""
        flat = vectors.reshape(-1, vectors.shape[-1])
        together = CACHED_DISTANCES if flat.device.type == "cpu" else DEVICE_DISTANCES
        rows = max(1, together // self.codebook.shape[0])
        tokens = torch.cat([first_least(self._squared_distances(chunk)) for chunk in flat.split(rows)])
        return tokens.view(vectors.shape[:-1])

    def _squared_distances(self, vectors: Tensor) -> Tensor:
        """|vector - c|^2 for all entries c, less |vector|^2, which moves no argmin or softmax: (..., e) -> (..., V)."""
        norms = self.codebook.square().sum(dim=1)
        flat = vectors.reshape(-1, vectors.shape[-1])
        with exact_products():
            products = torch.addmm(norms, flat, self.codebook.T, alpha=-2.0)
        return products.view(*vectors.shape[:-1], -1)

    # ---- encoding and training ----

    @torch.no_grad()
    def encode(self, latents: Tensor) -> GranularitySequence:
        """The granularity sequence of latents (N, L, e)."""
        return self.tokenize(latents, self.structure_codes(latents))

    @torch.no_grad()
    def tokenize(self, latents: Tensor, codes: Tensor) -> GranularitySequence:
        """Content for given structure codes: latents (N, L, e), codes (N, L) -> the sequence."""
        latents = latents.float()
        positions = positions_of_codes(codes)
        canvas = torch.zeros_like(latents)
        content: list[Tensor] = []
        for stage in range(self.last_stage + 1):
            if stage > 0:
                canvas = canvas + self.increment(stage - 1, content[-1], structure_map(codes, stage - 1))
            # In the order of their codes the positions of a cluster stand together.
            means = take(latents - canvas, positions).unflatten(1, (2**stage, -1)).mean(dim=2)  # (N, 2^i, e)
            content.append(self.nearest(means))
        return GranularitySequence(codes, content)

    def forward(self, latents: Tensor, *, soft: bool = False, entropy: bool = False) -> QuantizerOutput:
        """Quantize (N, L, e) for training.

        soft: codebook warm-up by index backpropagation (Shi et al., "Scalable image tokenization with index
        backpropagation quantization"): the one-hot choice carries the gradient of the soft assignment, so every entry
        learns. entropy: also compute the entropy term. Both hold a (N * 2^i, V) matrix per stage.
        """
        latents = latents.float()
        # A latent that is not finite makes a loss that is not, which ends a training: no need to wait and look here.
        codes = structure_codes(latents, self.child_order, checked=False)
        canvas = torch.zeros_like(latents)
        content, residual_means = [], []
        commitment = codebook_loss = entropy_term = latents.new_zeros(())
        stage_count = self.last_stage + 1
        for stage in range(stage_count):
            labels = structure_map(codes, stage)
            means = cluster_means(latents - canvas, labels, 2**stage)  # (N, 2^i, e)
            distances = self._squared_distances(means)
            tokens = first_least(distances)
            if soft or entropy:
                probabilities = self._soft_assignment(distances, means)
            if entropy:
                entropy_term = entropy_term + _entropy_term(probabilities) / stage_count
            if soft:
                one_hot = F.one_hot(tokens, self.codebook.shape[0]).to(probabilities.dtype)
                with exact_products():  # the entries themselves, as they are looked up later
                    vectors = (one_hot + probabilities - probabilities.detach()) @ self.codebook
                canvas = canvas + self.phi(stage, assign(vectors, labels))
            else:
                canvas = canvas + self.increment(stage, tokens, labels)
            commitment = commitment + F.mse_loss(latents, canvas.detach()) / stage_count
            codebook_loss = codebook_loss + F.mse_loss(canvas, latents.detach()) / stage_count
            content.append(tokens)
            residual_means.append(means.detach().flatten(0, 1))
        straight_through = latents + (canvas - latents).detach()
        if soft:
            straight_through = straight_through + (canvas - canvas.detach())
        return QuantizerOutput(
            canvas=straight_through,
            sequence=GranularitySequence(codes, content),
            commitment=commitment,
            codebook_loss=codebook_loss,
            entropy=entropy_term,
            residual_means=torch.cat(residual_means),
        )

    def _soft_assignment(self, distances: Tensor, means: Tensor) -> Tensor:
        """softmax(-d^2 / T) over the entries. T is the mean squared distance to the chosen entry, so that the softness
        does not depend on the scale of the latents."""
        chosen = (distances.amin(dim=-1) + means.square().sum(dim=-1)).detach()
        temperature = chosen.mean().clamp_min(1e-6)
        return (-distances / temperature).softmax(dim=-1)

    # ---- unused entries ----

    @torch.no_grad()
    def seed_codebook(self, latents: Tensor, rng: torch.Generator) -> None:
        """Start the codebook at the differences between cluster means and their parents' means, of all stages.

        latents: (N, L, e). The same latents and the same state of rng give the same codebook on every worker.
        """
        latents = latents.float()
        codes = structure_codes(latents)
        parent = torch.zeros_like(latents)
        seeds = []
        for stage in range(self.last_stage + 1):
            labels = structure_map(codes, stage)
            seeds.append(cluster_means(latents - parent, labels, 2**stage).flatten(0, 1))
            parent = assign(cluster_means(latents, labels, 2**stage), labels)
        everything = torch.ones(self.codebook.shape[0], dtype=torch.bool, device=self.codebook.device)
        self.revive(everything, torch.cat(seeds), rng)

    @torch.no_grad()
    def revive(self, unused: Tensor, seeds: Tensor, rng: torch.Generator) -> int:
        """Move unused entries (V,) bool onto random seeds (M, e); returns their number. rng is on the CPU."""
        rows = unused.nonzero()[:, 0]
        picks = torch.randint(seeds.shape[0], (rows.shape[0],), generator=rng).to(seeds.device)
        noise = torch.randn(rows.shape[0], seeds.shape[1], generator=rng).to(seeds.device)
        # A grain of noise keeps two entries on one seed apart.
        self.codebook[rows] = seeds[picks] + 0.01 * seeds.std() * noise
        return rows.shape[0]


def first_least(distances: Tensor) -> Tensor:
    """The first index of the least of each row: (..., V) -> (...) int64.

    It is argmin, in two steps: the block of entries with the least distance, then the entry in it. torch's argmin goes
    number by number where amin takes eight at once, and would cost more than the distances.
    """
    entries = distances.shape[-1]
    block = math.gcd(entries, BLOCK)
    blocks = distances.detach().reshape(-1, entries // block, block)  # (M, V / block, block)
    best = blocks.amin(dim=2).argmin(dim=1)  # (M,)
    first = torch.arange(0, blocks.shape[0] * blocks.shape[1], blocks.shape[1], device=distances.device)
    within = blocks.flatten(0, 1).index_select(0, first + best).argmin(dim=1)
    return (best * block + within).view(distances.shape[:-1])


def _entropy_term(probabilities: Tensor) -> Tensor:
    """Confident single choices, even use over all: E[H(p)] - H(E[p]) in nats, (..., V) -> scalar."""
    flat = probabilities.flatten(0, -2)
    single = -(flat * flat.clamp_min(1e-9).log()).sum(dim=-1).mean()
    average = flat.mean(dim=0)
    return single + (average * average.clamp_min(1e-9).log()).sum()
