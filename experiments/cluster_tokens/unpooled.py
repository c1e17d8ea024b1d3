"""The canvas loss of cluster tokens on positions, in training alone: two ways from clusters to positions.

positions: the last block is queried by the L positions too. A position's query is its cluster's hidden state and what
the token is made of at one position: the embedded canvas and the position network.

head: a small network of the cluster's last hidden state, the canvas at the position and a learned vector of it.

Our configurations train cluster tokens without a canvas loss, which needs none of this.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nvg.generator import ContentGenerator
from nvg.generator.block import modulate
from nvg.generator.tokens import HIDDEN
from nvg.granularity import GranularitySequence, assign, structure_embedding
from nvg.training.generator_loss import content_loss


def unpooled_content_loss(
    content: ContentGenerator,
    canvases: Sequence[Tensor],
    labels: Tensor,
    sequence: GranularitySequence,
    stages: Sequence[int],
) -> dict[str, Tensor]:
    """As `content_loss`, with |x - x_hat|^2 a mean over positions."""
    block, seen = content.backbone.blocks[-1], []
    handle = block.register_forward_pre_hook(lambda module, inputs: seen.append(inputs))
    terms = content_loss(content, canvases, labels, sequence, stages)
    handle.remove()
    terms["canvas"] = squared_error(content, seen[0], canvases, sequence, stages)
    return terms


class PositionHead(nn.Module):
    """What the difference at a position has over its cluster's: last hidden states of clusters (N, 2^i, w), their map
    (N, L), canvas (N, L, e) -> (N, L, e)."""

    def __init__(self, positions: int, code_width: int, width: int) -> None:
        super().__init__()
        self.cluster = nn.Linear(width, HIDDEN)
        self.canvas = nn.Linear(code_width, HIDDEN)
        self.place = nn.Parameter(torch.randn(positions, HIDDEN) / 4)
        self.out = nn.Linear(HIDDEN, code_width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, hidden: Tensor, clusters: Tensor, canvas: Tensor) -> Tensor:
        """See the class."""
        return self.out(F.silu(assign(self.cluster(hidden), clusters) + self.canvas(canvas) + self.place))


def content_loss_by_head(
    content: ContentGenerator,
    canvases: Sequence[Tensor],
    labels: Tensor,
    sequence: GranularitySequence,
    stages: Sequence[int],
) -> dict[str, Tensor]:
    """As `content_loss`, with |x - x_hat|^2 a mean over positions, by the module `content.position_head`."""
    seen: list[tuple[Tensor, Tensor]] = []
    handle = content.difference.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output)))
    terms = content_loss(content, canvases, labels, sequence, stages)
    handle.remove()
    lengths = [2**stage for stage in stages]
    rows = len(labels), sum(lengths), -1
    hidden, differences = (one.reshape(rows).split(lengths, dim=1) for one in seen[0])
    head, errors = cast(PositionHead, content.position_head), []
    for stage, state, difference in zip(stages, hidden, differences, strict=True):
        clusters = sequence.structure_map(stage)
        scaled = canvases[stage] * content.input_scales[stage]
        found = assign(difference, clusters) + head(state, clusters, scaled)
        errors.append(F.mse_loss(found, canvases[-1] - canvases[stage]))
    terms["canvas"] = torch.stack(errors).mean()
    return terms


def squared_error(
    content: ContentGenerator,
    inputs: tuple[Any, ...],
    canvases: Sequence[Tensor],
    sequence: GranularitySequence,
    stages: Sequence[int],
) -> Tensor:
    """|x - x_hat|^2 over positions, from what enters the last block: x (N, T, w), condition, table, lengths."""
    x, condition, _, lengths, *_ = inputs
    positions = sequence.codes.shape[1]
    assert content.position_network is not None
    parts, tables, longer = [], [], []
    for stage, one in zip(stages, x.split(list(lengths), dim=1), strict=True):
        scaled = canvases[stage] * content.input_scales[stage] if stage else content.start.expand_as(canvases[0])
        query = content.embed(scaled) + content.position_network(scaled)
        parts += [one, query + assign(one[:, 1:], sequence.structure_map(stage))]
        known = structure_embedding(sequence.codes, stage)
        tables += [content.rotary(sequence.codes, stage), content.rotary_table(known)[:, :, 1:]]
        longer.append(one.shape[1] + positions)
    out = content.backbone.blocks[-1](torch.cat(parts, dim=1), condition, torch.cat(tables, dim=2), longer, positions)
    shift, scale = content.backbone.modulation(condition).chunk(2, dim=-1)
    kept = [positions] * len(list(stages))
    differences = content.difference(modulate(content.backbone.norm(out), shift, scale, kept)).split(kept, dim=1)
    errors = [F.mse_loss(one, canvases[-1] - canvases[stage]) for stage, one in zip(stages, differences, strict=True)]
    return torch.stack(errors).mean()
