"""The content generator f_c: from the canvas so far to the tokens of a stage (docs/method.md, content generator).

Depth d, width 64 d, d heads, 61,440 d^3 block parameters. It sees the canvas, scaled to one at every stage, and at
stage 0, where the canvas is empty, a learned start canvas. It estimates the final canvas, x_hat = f_c(x_i); the
difference x_hat - x_i, averaged over each cluster of s_i, gives the logits of c_i.

Its tokens are the L positions (content.tokens=positions, the source's form) or, ours, the 2^i clusters of the stage
(clusters), of which it estimates the mean difference at once.

Three choices make it learn from the first step (docs/reports/recipe_first_runs.md has what they are worth):
- The network's output is the difference itself, x_hat = x_i + output: late stages correct little and need not copy x_i.
  With content.residual=false it is x_hat, as in the released system.
- The map from difference to logits starts as the quantizer's own rule, softened: -|r - c|^2 / T for an entry c. Entries
  differ from their neighbours by a tenth of a unit, so a map of ordinary initial size needs tens of thousands of steps.
- A gain per stage on the logits: a coarse stage's residuals are many times those of a fine one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nvg.config import ContentConfig
from nvg.generator.block import Backbone, TimeEmbedding, by_rows, by_stage
from nvg.generator.rope import GENERATED, Rotary, class_token_ids, cluster_ids, for_blocks
from nvg.generator.tokens import CLUSTERS, PositionNetwork, cluster_tokens
from nvg.granularity import cluster_means, code_order, last_stage, structure_embedding, structure_map


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
        self.of_clusters = config.tokens == CLUSTERS
        self.position_network = (
            PositionNetwork(config.grid**2, config.code_width, width) if config.position_network else None
        )
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

    def rotary(self, codes: Tensor, stage: int, order: Tensor | None = None) -> Tensor:
        """The rotary table of a stage's tokens: codes (N, L) known up to it -> (N, 1, 1 + T, 32, 2), in the blocks'
        dtype but on a CPU.

        order (N, L): `code_order` of the codes, where it is known already.
        """
        dtype = self.backbone.modulation.weight.dtype
        if not self.of_clusters:
            return for_blocks(self.rotary_table(structure_embedding(codes, stage)), dtype)
        first = class_token_ids(codes.shape[0], self.last_stage, codes.device)
        order = code_order(codes) if order is None else order
        ids = cluster_ids(GENERATED, stage, order, self.config.grid)
        return for_blocks(self.rotary_table.of_ids(torch.cat((first, ids), dim=1)), dtype)

    def forward(
        self,
        canvases: Sequence[Tensor],
        codes: Tensor,
        labels: Tensor,
        stages: Tensor,
        tables: Sequence[Tensor],
        guidance: Tensor | None = None,
        order: Tensor | None = None,
        chances: Tensor | None = None,
    ) -> tuple[list[Tensor], list[Tensor] | None]:
        """What N images lack at S stages: canvases x_i (N, L, e), one a stage; codes (N, L) known up to the last of
        them; labels (N,); the stages (S,); their tables, of `rotary`.

        Returns x_hat - x_i a stage, (N, L, e) or, of clusters, its means (N, 2^i, e); and the alignments, (N, L or
        2^i, repa_width) a stage, of a model with a `repa_block` that is training. guidance (N,) in [1, max_guidance],
        of a guided generator alone: the scale of the logits (docs/reference/few_step.md). order (N, L): `code_order`
        of the codes, where it is known. chances (N, S, depth): of the blocks that training skips (Block.forward).
        """
        tap = self.config.repa_block if self.training else None
        extra = None
        if self.config.guided:
            assert guidance is not None
            scale = (guidance - 1) / (self.config.max_guidance - 1)  # in [0, 1], as times are
            extra = self.guidance_condition(scale)[:, None]  # (N, 1, w)
        count, images = len(canvases), labels.shape[0]
        seen = [
            torch.where(stage == 0, self.start, canvas * scale)
            for canvas, stage, scale in zip(canvases, stages, self.input_scales[stages], strict=True)
        ]
        if self.of_clusters:
            assert self.position_network is not None
            order = code_order(codes) if order is None else order
            sizes = [table.shape[2] - 1 for table in tables]
            tokens = cluster_tokens(self.embed, self.position_network, seen, order, sizes)
            expanded = stages.expand(images, -1)
            out, hidden = self.backbone(tokens, tables, labels, expanded, extra=extra, tap=tap, chances=chances)
        else:  # all stages have L tokens: a row of the batch for each image and stage
            rows = torch.cat(seen)  # (S N, L, e)
            embedded = self.embed(rows)
            if self.position_network is not None:
                embedded = embedded + self.position_network(rows)
            out, hidden = self.backbone(
                [embedded],
                [torch.cat(list(tables))],
                labels.repeat(count),
                stages.repeat_interleave(images, output_size=count * images)[:, None],
                extra=None if extra is None else extra.repeat(count, 1, 1),
                tap=tap,
                chances=by_stage(chances),
            )
            out = list(out[0].chunk(count))
            hidden = None if hidden is None else list(hidden[0].chunk(count))
        lengths = [one.shape[1] for one in out]
        differences = list(by_rows(self.difference, torch.cat(out, dim=1)).split(lengths, dim=1))
        if not self.config.residual:
            differences = [one - canvas for one, canvas in zip(differences, canvases, strict=True)]
        if self.align is None or hidden is None:
            return differences, None
        return differences, [self.align(one) for one in hidden]

    def of_tokens(self, values: Tensor, codes: Tensor, stage: int) -> Tensor:
        """Values of all positions, (N, L, e), as `stage` has tokens: as they are, or means over clusters."""
        return cluster_means(values, structure_map(codes, stage), 2**stage) if self.of_clusters else values

    def logits(self, difference: Tensor, codes: Tensor, stage: int) -> Tensor:
        """Logits of c_i from x_hat - x_i of its stage, as `forward` gives it, and codes (N, L): (N, 2^i, V)."""
        if not self.of_clusters:
            difference = cluster_means(difference, structure_map(codes, stage), 2**stage)
        return self.log_gain[stage].exp() * by_rows(self.to_logits, difference)
