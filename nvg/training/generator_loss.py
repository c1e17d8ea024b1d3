"""The training losses of both generators (docs/method.md, content and structure generator), as one module.

A step takes all stages of every image: 0 ... K of the content generator, 1 ... K-1 of the structure generator. Whether
the class is dropped, and the noise of the flows, is drawn once an image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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

    def draw(self, images: int, rng: torch.Generator) -> dict[str, Tensor]:
        """Every random number of the loss of N images, a row an image, on the CPU: whether the class is dropped (N,);
        the noise (N, L, K) and the times (N, K - 1) of the flows; and `chances` of the content generator
        (N, K + 1, depth) and of the structure generator (N, K - 1, depth)."""
        last = self.quantizer[0].last_stage
        draws = {"dropped": torch.rand(images, generator=rng) < self.config.class_dropout}
        if self.structure is not None:
            draws["noise"], draws["times"] = draw_flow(torch.Size((images, 2**last)), last, rng)
        for name, network, stages in (("content", self.content, last + 1), ("structure", self.structure, last - 1)):
            if network is not None:
                depth = len(network.backbone.blocks)
                draws[f"{name}_chances"] = torch.rand(images, stages, depth, generator=rng)
        return draws

    def forward(
        self,
        sequence: GranularitySequence,
        labels: Tensor,
        draws: Mapping[str, Tensor],
        features: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The summed loss and its terms: means over images, so that those of a batch are the means of its parts'.

        sequence and labels (N,) of N images; draws: of `draw`; features (N, L, D) of DINOv2 for representation
        alignment, or None.
        """
        quantizer = self.quantizer[0]
        device = sequence.codes.device
        # The sampler accumulates its canvas in float32: so do the targets, whatever the device computes in.
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            canvases = quantizer.canvases(sequence)  # K + 2 of (N, L, e)
        last = quantizer.last_stage
        dropped = draws["dropped"].to(device)
        terms: dict[str, Tensor] = {}
        if self.content is not None:
            shown = torch.where(dropped, self.content.config.num_classes, labels)
            chances = draws["content_chances"].to(device)
            terms |= content_loss(self.content, canvases, shown, sequence, range(last + 1), features, chances)
        if self.structure is not None:
            shown = torch.where(dropped, self.structure.config.num_classes, labels)
            flow = [draws[name].to(device) for name in ("noise", "times", "structure_chances")]
            terms |= structure_loss(self.structure, canvases, shown, sequence.codes, range(1, last), *flow)
        weights = {"canvas": self.config.canvas_weight, "alignment": self.repa_weight}
        return sum(
            (weights.get(name, 1.0) * term for name, term in terms.items()), torch.zeros((), device=device)
        ), terms


def draw_flow(shape: torch.Size, channels: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """The noise of N images, which all stages of an image share, and the times t = sigmoid(N(0, 1)) of the K - 1 flows
    of each: shape (N, L) -> (N, L, channels = K) and (N, K - 1), on the CPU."""
    noise = torch.randn(*shape, channels, generator=rng)
    return noise, torch.randn(channels - 1, shape[0], generator=rng).sigmoid().T


def content_loss(
    content: ContentGenerator,
    canvases: Sequence[Tensor],
    labels: Tensor,
    sequence: GranularitySequence,
    stages: Sequence[int],
    features: Tensor | None = None,
    chances: Tensor | None = None,
) -> dict[str, Tensor]:
    """|x - x_hat|^2 over the tokens of a stage, and the cross-entropy of c_i over its clusters: means over N images and
    S stages.

    canvases: x_0 ... x_{K+1} (N, L, e) each; labels (N,); features (N, L, D) or None; chances (N, S, depth), of the
    blocks that are skipped, or None: torch's own. Raises ValueError where the generator aligns its hidden states and
    there are no features.
    """
    codes, inputs = sequence.codes, [canvases[stage] for stage in stages]
    tables = [content.rotary(codes, stage) for stage in stages]
    of_stages = labels.new_tensor(list(stages))
    differences, aligned = content(inputs, codes, labels, of_stages, tables, chances=chances)
    squares, cross_entropies = [], []
    for stage, canvas, difference in zip(stages, inputs, differences, strict=True):
        target = content.of_tokens(canvases[-1] - canvas, codes, stage)
        squares.append(F.mse_loss(difference.float(), target))
        logits = content.logits(difference, codes, stage).float()  # (N, 2^i, V)
        cross_entropies.append(F.cross_entropy(logits.flatten(0, 1), sequence.content[stage].flatten()))
    terms = {"canvas": torch.stack(squares).mean(), "cross_entropy": torch.stack(cross_entropies).mean()}
    if aligned is not None:
        if features is None:
            raise ValueError(
                "representation alignment needs DINOv2 features with each image: rebuild the tokens "
                "with repa.weights set"
            )
        targets = [content.of_tokens(features.float(), codes, stage) for stage in stages]
        similar = [
            F.cosine_similarity(found.float(), expected, dim=-1).mean()
            for found, expected in zip(aligned, targets, strict=True)
        ]
        terms["alignment"] = -torch.stack(similar).mean()
    return terms


def structure_loss(
    structure: StructureGenerator,
    canvases: Sequence[Tensor],
    labels: Tensor,
    codes: Tensor,
    stages: Sequence[int],
    noise: Tensor,
    times: Tensor,
    chances: Tensor | None = None,
) -> dict[str, Tensor]:
    """The rectified flow's |v - (eps - b)|^2, a mean over all channels, N images and S stages.

    canvases: x_0 ... x_{K+1} (N, L, e) each; labels (N,); codes (N, L) whole; stages to be generated; noise eps
    (N, L, K); times (N, S). Channels j < stage - 1 are known: there eps is b itself, so z(t) is clean and the
    velocity 0. chances (N, S, depth), of the blocks that are skipped, or None: torch's own.
    """
    bits = signed_bits(codes, structure.last_stage)  # (N, L, K)
    channel = torch.arange(structure.last_stage, device=codes.device)
    targets = [torch.where(channel < stage - 1, 0.0, noise - bits) for stage in stages]
    noisy = [bits + time[:, None, None] * target for time, target in zip(times.T, targets, strict=True)]
    tables = [structure.rotary(codes, stage) for stage in stages]
    inputs = [canvases[stage] for stage in stages]
    of_stages = labels.new_tensor(list(stages))
    velocities = structure(noisy, times, inputs, codes, labels, of_stages, tables, chances=chances)
    errors = [F.mse_loss(velocity.float(), target) for velocity, target in zip(velocities, targets, strict=True)]
    return {"flow": torch.stack(errors).mean()}
