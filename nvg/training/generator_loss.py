"""The training losses of both generators (docs/method.md, content and structure generator), as one module.

One pass takes one stage an image for each generator. Stages are drawn stratified: over a batch of B images every stage
comes floor(B / stages) or one more times, in random order, so each stage is trained equally and no step misses one by
chance. The content generator draws from 0 ... K, the structure generator from 1 ... K-1. With train.all_stages a pass
takes all stages of every image instead. Whether the class is dropped, and the noise of the flows, is drawn once an
image.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nvg.autoencoder import GranularityQuantizer
from nvg.config import TrainConfig
from nvg.generator import ContentGenerator, StructureGenerator
from nvg.generator.structure import signed_bits
from nvg.granularity import GranularitySequence


class Generators(nn.Module):
    """Content and structure generator side by side: either may be None when it is not trained."""

    def __init__(
        self,
        content: ContentGenerator | None,
        structure: StructureGenerator | None,
        quantizer: GranularityQuantizer,
        config: TrainConfig,
        repa_weight: float = 0.0,
    ) -> None:
        super().__init__()
        self.content = content
        self.structure = structure
        self.config = config
        self.repa_weight = repa_weight
        self.quantizer = [quantizer]  # in a list: frozen, and no part of this module's state

    @torch.no_grad()
    def begin(self, sequence: GranularitySequence) -> None:
        """Before the first step: set what follows from the codebook and from the scale of some images' canvases."""
        quantizer = self.quantizer[0]
        canvases = quantizer.canvases(sequence)
        if self.content is not None:
            self.content.begin(quantizer.codebook, canvases)
        if self.structure is not None:
            self.structure.begin(canvases[-1])

    def forward(
        self, sequence: GranularitySequence, labels: Tensor, rng: torch.Generator, features: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The summed loss and its terms.

        sequence and labels (N,) of N images; rng: random generator (CPU) of every draw of this step; features
        (N, L, D) of DINOv2 for representation alignment, or None.
        """
        quantizer = self.quantizer[0]
        device = sequence.codes.device
        # The sampler accumulates its canvas in float32: so do the targets, whatever the device computes in.
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            canvases = torch.stack(quantizer.canvases(sequence))  # (K + 2, N, L, e)
        terms: dict[str, Tensor] = {}
        loss = torch.zeros((), device=device)
        dropped = (torch.rand(labels.shape[0], generator=rng) < self.config.class_dropout).to(device)
        for part, first, last in (
            (self.content, 0, quantizer.last_stage),
            (self.structure, 1, quantizer.last_stage - 1),
        ):
            if part is None:
                continue
            stage_list, rows = rows_of_stages(labels.shape[0], first, last, rng, all_stages=self.config.all_stages)
            stage, rows = stage_list.to(device), rows.to(device)
            canvas = canvases[stage, rows]  # x_i, (M, L, e), M = N or N * stages
            shown = torch.where(dropped, part.config.num_classes, labels)[rows]
            if isinstance(part, ContentGenerator):
                aligned = features[rows] if features is not None else None
                part_terms = content_loss(part, canvas, canvases[-1][rows], shown, stage_list, sequence[rows], aligned)
                loss = loss + self.config.canvas_weight * part_terms["canvas"] + part_terms["cross_entropy"]
                if "alignment" in part_terms:
                    loss = loss + self.repa_weight * part_terms["alignment"]
            else:
                noise, time = draw_flow(sequence.codes.shape, quantizer.last_stage, len(stage_list), rng)
                noise, time = noise.to(device)[rows], time.to(device)
                part_terms = structure_loss(part, canvas, shown, stage, sequence.codes[rows], noise, time)
                loss = loss + part_terms["flow"]
            terms |= part_terms
        return loss, terms


def rows_of_stages(
    images: int, first: int, last: int, rng: torch.Generator, *, all_stages: bool
) -> tuple[Tensor, Tensor]:
    """What a pass is made of: the stage of each row, and its image, (M,) each on the CPU. M is `images`, with stages
    drawn by `draw_stages`, or with all_stages `images` times the stages first ... last."""
    if not all_stages:
        return draw_stages(images, first, last, rng), torch.arange(images)
    stages = torch.arange(first, last + 1)
    return stages.repeat_interleave(images), torch.arange(images).repeat(len(stages))


def draw_stages(count: int, first: int, last: int, rng: torch.Generator) -> Tensor:
    """A stratified draw of `count` stages from first ... last: (count,) int64 on the CPU."""
    stages = last - first + 1
    offset = int(torch.randint(stages, (), generator=rng))  # which stages get the one more
    even = (torch.arange(count) + offset) % stages + first
    return even[torch.randperm(count, generator=rng)]


def draw_flow(shape: torch.Size, channels: int, rows: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """The noise of N images, which all stages of an image share, and the times t = sigmoid(N(0, 1)) of M rows, one for
    each image and stage: shape (N, L) -> (N, L, channels) and (M,), on the CPU."""
    noise = torch.randn(*shape, channels, generator=rng)
    return noise, torch.randn(rows, generator=rng).sigmoid()


def content_loss(
    content: ContentGenerator,
    canvas: Tensor,
    final: Tensor,
    labels: Tensor,
    stages: Tensor,
    sequence: GranularitySequence,
    features: Tensor | None,
) -> dict[str, Tensor]:
    """|x - x_hat|^2 and the cross-entropy of c_i, a mean over an image's clusters and then over images.

    canvas x_i and final x_{K+1} (N, L, e); labels (N,); stages (N,) on the CPU, one an image.
    """
    stage = stages.to(canvas.device)
    estimate, aligned = content(canvas, labels, stage, content.rotary(sequence.codes, stage))
    estimate = estimate.float()
    cross_entropy = canvas.new_zeros(())
    for i in range(content.last_stage + 1):  # a stage has 2^i clusters: one shape a group
        rows = (stages == i).nonzero()[:, 0].to(canvas.device)
        if rows.shape[0] == 0:
            continue
        some = sequence[rows]
        logits = content.logits(estimate[rows], canvas[rows], some.structure_map(i), i).float()  # (n, 2^i, V)
        mean = F.cross_entropy(logits.flatten(0, 1), some.content[i].flatten())
        cross_entropy = cross_entropy + mean * (rows.shape[0] / labels.shape[0])
    terms = {"canvas": F.mse_loss(estimate, final), "cross_entropy": cross_entropy}
    if aligned is not None:
        if features is None:
            raise ValueError(
                "representation alignment needs DINOv2 features with each image: rebuild the tokens "
                "with repa.weights set"
            )
        terms["alignment"] = -F.cosine_similarity(aligned.float(), features.float(), dim=-1).mean()
    return terms


def structure_loss(
    structure: StructureGenerator,
    canvas: Tensor,
    labels: Tensor,
    stage: Tensor,
    codes: Tensor,
    noise: Tensor,
    time: Tensor,
) -> dict[str, Tensor]:
    """The rectified flow's |v - (eps - b)|^2, a mean over all channels.

    canvas x_i (N, L, e), labels (N,), stage (N,) the stage to be generated, codes (N, L) whole, noise eps (N, L, K),
    time (N,). Channels j < stage - 1 are known: there eps is b itself, so z(t) is clean and the velocity 0.
    """
    bits = signed_bits(codes, structure.last_stage)  # (N, L, K)
    known = torch.arange(structure.last_stage, device=codes.device) < stage[:, None, None] - 1  # (N, 1, K)
    target = torch.where(known, 0.0, noise - bits)
    noisy = bits + time[:, None, None] * target
    velocity = structure(noisy, time, canvas, labels, stage, structure.rotary(codes, stage)).float()
    return {"flow": F.mse_loss(velocity, target)}
