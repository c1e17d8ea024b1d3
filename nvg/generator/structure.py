"""The structure generator f_s: a rectified flow on the bits of the structure (docs/method.md, structure generator).

Depth d, width 32 d, d/2 heads, 15,360 d^3 block parameters. z(t) = t eps + (1 - t) b with bits b of -1 and +1; the
network predicts the velocity eps - b. Channels of stages that are known are never noised. The sequence is class,
canvas, structure: L tokens of the structure, and of the canvas L positions (structure.canvas_tokens=positions, the
source's form) or, ours, the 2^(i-1) clusters of the stage that is known (clusters).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nvg.config import StructureConfig
from nvg.generator.block import Backbone, TimeEmbedding, by_stage
from nvg.generator.rope import (
    CONDITION,
    GENERATED,
    Rotary,
    class_token_ids,
    cluster_ids,
    for_blocks,
    token_ids,
)
from nvg.generator.tokens import CLUSTERS, PositionNetwork, cluster_tokens
from nvg.granularity import code_order, last_stage, structure_embedding

STEP_COUNTS = (1, 2, 4, 8, 16)  # steps of sizes 1 ... 1/16 that a few-step generator learns; more are the flow itself


def signed_bits(codes: Tensor, stage: Tensor | int) -> Tensor:
    """b, what the flow ends in: codes (N, L) -> (N, L, K), -1 or +1 for a bit known up to `stage`, else 0."""
    return structure_embedding(codes, stage) - 1.0


class StructureGenerator(nn.Module):
    """The structure generator f_s. Labels are class indices; `num_classes` is "no class"."""

    def __init__(self, config: StructureConfig) -> None:
        super().__init__()
        self.config = config
        width = 32 * config.depth
        self.last_stage = last_stage(config.grid**2)
        self.rotary_table = Rotary((CONDITION, GENERATED), config.grid, self.last_stage)
        self.embed_canvas = nn.Linear(config.code_width, width)
        self.of_clusters = config.canvas_tokens == CLUSTERS
        self.position_network = PositionNetwork(config.grid**2, config.code_width, width) if self.of_clusters else None
        self.embed_structure = nn.Linear(self.last_stage, width)
        self.backbone = Backbone(
            depth=config.depth,
            width=width,
            num_classes=config.num_classes,
            last_stage=self.last_stage,
            timed=True,
        )
        self.velocity = nn.Linear(width, self.last_stage)
        if config.few_step:
            self.step_condition, self.guidance_condition = TimeEmbedding(width), TimeEmbedding(width)
            for embedding in (self.step_condition, self.guidance_condition):
                embedding.begin_as_zero()

    @torch.no_grad()
    def begin(self, canvas: Tensor) -> None:
        """Set the weights before the first step: the canvas input is scaled to one, by canvases (N, L, e)."""
        scale = canvas.std().clamp_min(1e-6)
        self.embed_canvas.weight.div_(scale)
        if self.position_network is not None:
            self.position_network.canvas.weight.div_(scale)

    def rotary(self, codes: Tensor, stage: int, order: Tensor | None = None) -> Tensor:
        """The rotary table when `stage` is to be generated: its bits and later ones count as unknown. Codes (N, L) ->
        (N, 1, 1 + canvas tokens + L, 32, 2), in the blocks' dtype but on a CPU. order (N, L): `code_order` of the
        codes, where it is known already."""
        known, dtype = structure_embedding(codes, stage - 1), self.backbone.modulation.weight.dtype
        if not self.of_clusters:
            return for_blocks(self.rotary_table(known), dtype)
        order = code_order(codes) if order is None else order
        ids = (
            class_token_ids(codes.shape[0], self.last_stage, codes.device),
            cluster_ids(CONDITION, stage - 1, order, self.config.grid),
            token_ids(GENERATED, known, self.config.grid),
        )
        return for_blocks(self.rotary_table.of_ids(torch.cat(ids, dim=1)), dtype)

    def forward(
        self,
        noisy: Sequence[Tensor],
        times: Tensor,
        canvases: Sequence[Tensor],
        codes: Tensor,
        labels: Tensor,
        stages: Tensor,
        tables: Sequence[Tensor],
        steps: Tensor | None = None,
        guidance: Tensor | None = None,
        order: Tensor | None = None,
        chances: Tensor | None = None,
    ) -> list[Tensor]:
        """The velocities of N images at S stages that are to be generated: at z(t) (N, L, K), one a stage; times
        (N, S) in [0, 1]; canvases x_i (N, L, e), one a stage; codes (N, L) known up to the stage before the last of
        them; labels (N,); the stages (S,); their tables, of `rotary` -> (N, L, K) a stage.

        Of a few-step generator alone: the mean velocity over [time - step, time] of the flow that is guided with scale
        `guidance` (docs/reference/few_step.md); steps (N, S) in [0, 1], 0 = at the point itself, guidance (N, S) in
        [1, max_guidance]. order (N, L): `code_order` of the codes, where it is known already. chances (N, S, depth):
        uniform numbers, of the blocks that a stage of an image skips in training (Block.forward).
        """
        count, images, positions = len(noisy), labels.shape[0], noisy[0].shape[1]
        extra = None
        if self.config.few_step:
            assert steps is not None and guidance is not None
            scale = (guidance - 1) / (self.config.max_guidance - 1)  # in [0, 1], as times are
            extra = self.step_condition(steps) + self.guidance_condition(scale)  # (N, S, w)
        if self.of_clusters:
            assert self.position_network is not None
            order = code_order(codes) if order is None else order
            sizes = [table.shape[2] - 1 - positions for table in tables]
            known = cluster_tokens(self.embed_canvas, self.position_network, canvases, order, sizes)
            tokens = [torch.cat((one, self.embed_structure(z)), dim=1) for one, z in zip(known, noisy, strict=True)]
            expanded = stages.expand(images, -1)
            out, _ = self.backbone(
                tokens, tables, labels, expanded, times, extra=extra, keep_last=positions, chances=chances
            )
            return list(self.velocity(torch.cat(out, dim=1)).chunk(count, dim=1))
        # All stages have 2 L tokens: a row of the batch for each image and stage.
        tokens = [
            torch.cat(
                (self.embed_canvas(torch.cat(list(canvases))), self.embed_structure(torch.cat(list(noisy)))), dim=1
            )
        ]
        (one,), _ = self.backbone(
            tokens,
            [torch.cat(list(tables))],
            labels.repeat(count),
            stages.repeat_interleave(images, output_size=count * images)[:, None],
            times.T.reshape(-1, 1),
            extra=None if extra is None else extra.transpose(0, 1).reshape(count * images, 1, -1),
            keep_last=positions,
            chances=by_stage(chances),
        )
        return list(self.velocity(one).chunk(count))
