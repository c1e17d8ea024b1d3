"""The structure generator f_s: a rectified flow on the bits of the structure (docs/method.md, structure generator).

Depth d, width 32 d, d/2 heads, 15,360 d^3 block parameters. z(t) = t eps + (1 - t) b with bits b of -1 and +1; the
network predicts the velocity eps - b. Channels of stages that are known are never noised. The sequence is class,
canvas, structure.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nvg.config import StructureConfig
from nvg.generator.block import Backbone, TimeEmbedding
from nvg.generator.rope import CONDITION, GENERATED, Rotary
from nvg.granularity import last_stage, structure_embedding

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
        self.embed_canvas.weight.div_(canvas.std().clamp_min(1e-6))

    def rotary(self, codes: Tensor, stage: Tensor | int) -> Tensor:
        """The rotary table when `stage` is to be generated: its bits and later ones count as unknown."""
        return self.rotary_table(structure_embedding(codes, stage - 1))

    def forward(
        self,
        noisy: Tensor,
        time: Tensor,
        canvas: Tensor,
        labels: Tensor,
        stage: Tensor,
        table: Tensor,
        step: Tensor | None = None,
        guidance: Tensor | None = None,
    ) -> Tensor:
        """The velocity at z(t): noisy (N, L, K), time (N,) in [0, 1], canvas x_i (N, L, e), labels (N,), stage (N,)
        to be generated, table of `rotary` -> (N, L, K).

        Of a few-step generator alone: the mean velocity over [time - step, time] of the flow that is guided with scale
        `guidance` (docs/fast_sampling.md); step (N,) in [0, 1], 0 = at the point itself, guidance (N,) in
        [1, max_guidance].
        """
        tokens = torch.cat((self.embed_canvas(canvas), self.embed_structure(noisy)), dim=1)  # (N, 2L, w)
        extra = None
        if self.config.few_step:
            assert step is not None and guidance is not None
            scale = (guidance - 1) / (self.config.max_guidance - 1)  # in [0, 1], as times are
            extra = self.step_condition(step) + self.guidance_condition(scale)
        out, _ = self.backbone(tokens, table, labels, stage, time, extra=extra, keep_last=noisy.shape[1])
        return self.velocity(out)
