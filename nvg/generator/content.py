"""The content generator f_c: from the canvas so far to the tokens of a stage (docs/method.md, content generator).

Depth d, width 64 d, d heads, 61,440 d^3 block parameters. It sees the canvas, scaled to one at every stage, and at
stage 0, where the canvas is empty, a learned start canvas. It estimates the final canvas, x_hat = f_c(x_i); the
difference x_hat - x_i, averaged over each cluster of s_i, gives the logits of c_i.

Three choices make it learn from the first step (docs/recipe.md has what they are worth):
- The network's output is the difference itself, x_hat = x_i + output: late stages correct little and need not copy x_i.
  With content.residual=false it is x_hat, as in the released system.
- The map from difference to logits starts as the quantizer's own rule, softened: -|r - c|^2 / T for an entry c. Entries
  differ from their neighbours by a tenth of a unit, so a map of ordinary initial size needs tens of thousands of steps.
- A gain per stage on the logits: a coarse stage's residuals are many times those of a fine one.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nvg.config import ContentConfig
from nvg.generator.block import Backbone, TimeEmbedding, by_rows
from nvg.generator.rope import GENERATED, Rotary
from nvg.granularity import cluster_means, last_stage, structure_embedding


class ContentGenerator(nn.Module):
    """The content generator f_c. Labels are class indices; `num_classes` is "no class"."""

    input_scales: Tensor

    def __init__(self, config: ContentConfig) -> None:
        super().__init__()
        self.config = config
        width = 64 * config.depth
        self.last_stage = last_stage(config.grid**2)
        self.rotary_table = Rotary((GENERATED,), config.grid, self.last_stage)
        self.start = nn.Parameter(torch.zeros(1, config.grid**2, config.code_width))  # in place of x_0, not scaled
        self.register_buffer("input_scales", torch.ones(self.last_stage + 1))  # of x_i; that of x_0 is not used
        self.embed = nn.Linear(config.code_width, width)
        self.backbone = Backbone(
            depth=config.depth,
            width=width,
            num_classes=config.num_classes,
            last_stage=self.last_stage,
            timed=False,
        )
        self.difference = nn.Linear(width, config.code_width)
        self.to_logits = nn.Linear(config.code_width, config.codebook_size)
        self.log_gain = nn.Parameter(torch.zeros(self.last_stage + 1))
        if config.guided:
            self.guidance_condition = TimeEmbedding(width)
            self.guidance_condition.begin_as_zero()
        nn.init.zeros_(self.difference.weight)  # the first estimate is the canvas as it is
        nn.init.zeros_(self.difference.bias)
        # Representation alignment (Yu et al., REPA): a three-layer projection, used in training alone.
        self.align = (
            nn.Sequential(
                nn.Linear(width, 2048),
                nn.SiLU(),
                nn.Linear(2048, 2048),
                nn.SiLU(),
                nn.Linear(2048, config.repa_width),
            )
            if config.repa_block is not None
            else None
        )

    @torch.no_grad()
    def begin(self, codebook: Tensor, canvases: list[Tensor]) -> None:
        """Set the state before the first step: logits are -|r - c|^2 / T of the codebook (V, e), T twice its mean
        squared norm; the canvases x_0 ... x_K of some images, (N, L, e) each, give every stage's input scale."""
        temperature = 2.0 * codebook.square().sum(dim=1).mean()
        self.to_logits.weight.copy_(2 * codebook / temperature)
        self.to_logits.bias.copy_(-codebook.square().sum(dim=1) / temperature)
        for stage in range(1, self.last_stage + 1):
            self.input_scales[stage] = 1 / canvases[stage].std().clamp_min(1e-6)

    def rotary(self, codes: Tensor, stage: Tensor | int) -> Tensor:
        """The rotary table of the sequence: codes (N, L) known up to `stage` (one number or (N,))."""
        return self.rotary_table(structure_embedding(codes, stage))

    def forward(
        self, canvas: Tensor, labels: Tensor, stage: Tensor, table: Tensor, guidance: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """canvas x_i (N, L, e), labels (N,), stage (N,), table of `rotary` -> (x_hat (N, L, e), alignment or None).

        The alignment (N, L, repa_width) is there when the model was built with a `repa_block` and is training.
        guidance (N,) in [1, max_guidance], of a guided generator alone: x_hat is then the one whose logits are guided
        with this scale (docs/fast_sampling.md).
        """
        tap = self.config.repa_block if self.training else None
        extra = None
        if self.config.guided:
            assert guidance is not None
            extra = self.guidance_condition((guidance - 1) / (self.config.max_guidance - 1))  # in [0, 1], as times are
        seen = torch.where(stage[:, None, None] == 0, self.start, canvas * self.input_scales[stage, None, None])
        out, hidden = self.backbone(self.embed(seen), table, labels, stage, extra=extra, tap=tap)
        aligned = self.align(hidden) if self.align is not None and hidden is not None else None
        estimate = self.difference(out)
        return (canvas + estimate if self.config.residual else estimate), aligned

    def logits(self, estimate: Tensor, canvas: Tensor, structure_map: Tensor, stage: int) -> Tensor:
        """Logits of c_i from x_hat and x_i (N, L, e) and s_i (N, L): (N, 2^i, V)."""
        means = cluster_means(estimate - canvas, structure_map, 2**stage)
        return self.log_gain[stage].exp() * by_rows(self.to_logits, means)
