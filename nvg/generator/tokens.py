"""What a generator's tokens know of the canvas: one token for each position, or one for each cluster of a stage.

The source runs L position tokens at every stage i. It predicts 2^i vectors from them, one for each cluster, and the
canvas that it sees is constant on a cluster, but for what the quantizer's convolutions add. Cluster tokens (ours, not
the source's) are 2^i in number. Each holds the mean canvas of its cluster and the mean of a small network of its
positions, which tells the cluster's shape and what varies within it (docs/method.md, cluster tokens).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nvg.generator.block import by_rows
from nvg.granularity import neighbour_means, take

CLUSTERS = "clusters"  # content.tokens and structure.canvas_tokens; the other form is "positions"
HIDDEN = 128  # width of the position network


class PositionNetwork(nn.Module):
    """A network of the canvas at a position and a learned vector of the position: (..., L, e) -> (..., L, w).

    Its second layer is linear, so the mean of its outputs over a cluster is the second layer of the mean: one row for
    each cluster in place of one for each position.
    """

    def __init__(self, positions: int, code_width: int, width: int) -> None:
        super().__init__()
        self.canvas = nn.Linear(code_width, HIDDEN)
        self.place = nn.Parameter(torch.empty(positions, HIDDEN))
        nn.init.normal_(self.place, std=0.25)
        self.out = nn.Linear(HIDDEN, width)

    def forward(self, canvas: Tensor) -> Tensor:
        """Of each position: canvas (B, L, e) -> (B, L, w)."""
        return self.out(F.silu(self.canvas(canvas) + self.place))

    def means(self, canvases: Sequence[Tensor], order: Tensor, clusters: Sequence[int]) -> list[Tensor]:
        """Of each cluster, at S stages: canvases (N, L, e) each in the order of codes, that order (N, L), and how many
        clusters the stages have -> (N, clusters, w) each."""
        place = F.embedding(order, self.place)  # (N, L, HIDDEN), the same at all stages
        each = zip(canvases, clusters, strict=True)
        means = [neighbour_means(F.silu(self.canvas(one) + place), count) for one, count in each]
        return list(by_rows(self.out, torch.cat(means, dim=1)).split(list(clusters), dim=1))


def cluster_tokens(
    embed: nn.Linear,
    network: PositionNetwork,
    canvases: Sequence[Tensor],
    order: Tensor,
    clusters: Sequence[int],
) -> list[Tensor]:
    """The tokens of all clusters at S stages: canvases (N, L, e) each, the order (N, L) of codes that are known up to
    these stages, and how many clusters these have -> (N, clusters, w) each."""
    ordered = [take(canvas, order) for canvas in canvases]
    means = [neighbour_means(canvas, count) for canvas, count in zip(ordered, clusters, strict=True)]
    embedded = by_rows(embed, torch.cat(means, dim=1)).split(list(clusters), dim=1)
    return [a + b for a, b in zip(embedded, network.means(ordered, order, clusters), strict=True)]
