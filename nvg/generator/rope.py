"""Structure-aware rotary embedding: a token's angles tell its kind, its bits of structure, its row and its column.

docs/method.md, rotary embedding. Of a head's 64 channels, at K = 8: 8 for the kind of token, 2 for each of the 8
channels of the structure embedding, 20 for the row, 20 for the column. Two positions of one cluster differ by no angle
in the structure channels, positions of different clusters do: attention sees the structure at every layer.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nvg.granularity import last_stage, neighbour_means

HEAD_WIDTH = 64
THETA = 10_000.0

GENERATED, CLASS, CONDITION = 0, 1, 2  # kinds of token: of what is generated, the class, of a canvas that is given


def axis_widths(last_stage: int) -> list[int]:
    """Head channels of (kind, K structure channels, row, column): even numbers with the sum 64.

    Two a structure channel; row and column share what 8 kind channels leave, and the kind takes the odd pair over.
    K = 8 gives 8, 2 x 8, 20, 20. Raises ValueError for K > 24, where rows and columns would have no channels.
    """
    side = 2 * ((HEAD_WIDTH - 8 - 2 * last_stage) // 4)
    if side < 2:
        raise ValueError(f"K = {last_stage} structure channels leave no room for rows and columns in {HEAD_WIDTH}")
    return [HEAD_WIDTH - 2 * last_stage - 2 * side] + [2] * last_stage + [side, side]


def rotary_table(ids: Tensor, widths: list[int]) -> Tensor:
    """Cosines and sines of position ids: (B, T, axes) float -> (B, 1, T, 32, 2), the same for all heads.

    Axis a of width d rotates pair m by id * THETA^(-2m / d).
    """
    angles = []
    for axis, width in enumerate(widths):
        angles.append(ids[..., axis, None].float() * frequencies(width, ids.device))
    angle = torch.cat(angles, dim=-1)[:, None]  # (B, 1, T, 32)
    return torch.stack((angle.cos(), angle.sin()), dim=-1)


def frequencies(width: int, device: torch.device | None = None) -> Tensor:
    """Angles per id of an axis's pairs: (width / 2,)."""
    return THETA ** (-torch.arange(0, width, 2, device=device, dtype=torch.float32) / width)


class Rotary(nn.Module):
    """Tables of sequences of a class token and one grid of L tokens of each kind: the known structure (B, L, K) ->
    (B, 1, 1 + kinds * L, 32, 2), as `rotary_table` gives it.

    Kind, row and column never change: their cosines and sines are made once, those of the structure channels a call.
    `of_ids` has the tables of any tokens.
    """

    fixed: Tensor
    axis: Tensor  # of each pair, (32,) int64
    frequency: Tensor  # of each pair, (32,)

    def __init__(self, kinds: Sequence[int], grid: int, last_stage: int) -> None:
        super().__init__()
        self.kinds = len(kinds)
        widths = axis_widths(last_stage)
        first = widths[0] // 2
        self.channels = slice(first, first + last_stage)  # a structure channel is one pair, of frequency 1
        with torch.device("cpu"):  # the meta device counts in Python, after the import of torch.compile
            unknown = torch.ones(1, grid**2, last_stage)
            ids = [class_token_ids(1, last_stage, unknown.device)] + [token_ids(kind, unknown, grid) for kind in kinds]
            fixed = rotary_table(torch.cat(ids, dim=1), widths)[0, 0]
            frequency = torch.cat([frequencies(width) for width in widths])
        device = torch.get_default_device()
        self.register_buffer("fixed", fixed.to(device), persistent=False)
        axes = [axis for axis, width in enumerate(widths) for _ in range(width // 2)]
        self.register_buffer("axis", torch.tensor(axes), persistent=False)
        self.register_buffer("frequency", frequency.to(device), persistent=False)

    def forward(self, known: Tensor) -> Tensor:
        table = self.fixed.repeat(known.shape[0], 1, 1, 1)  # (B, T, 32, 2)
        turned = torch.stack((known.cos(), known.sin()), dim=-1)  # (B, L, K, 2)
        table[:, 1:, self.channels] = turned.repeat(1, self.kinds, 1, 1)
        return table[:, None]

    def of_ids(self, ids: Tensor) -> Tensor:
        """The table of ids (B, T, K + 3), as `rotary_table` gives it, by a tenth of its operations."""
        angle = (ids.index_select(2, self.axis) * self.frequency)[:, None]  # (B, 1, T, 32)
        return torch.stack((angle.cos(), angle.sin()), dim=-1)


def for_blocks(table: Tensor, dtype: torch.dtype) -> Tensor:
    """The table for blocks of a dtype: cast once, and not for the queries and keys of each block. As it is on a CPU,
    where `rotate` takes it in float32."""
    return table if table.device.type == "cpu" else table.to(dtype)


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Rotate queries or keys: x (B, heads, T, 64), table of `rotary_table` -> (B, heads, T, 64), in the dtype of x.

    Eager on a CPU it is one complex product in float32, which is five times faster there. Elsewhere the numbers are
    real and in the dtype of x: torch.compile fuses them with what stands before, and has no complex numbers.
    """
    if x.device.type == "cpu" and not torch.compiler.is_compiling():
        pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))  # (B, heads, T, 32)
        return torch.view_as_real(pairs * torch.view_as_complex(table)).flatten(-2).to(x.dtype)
    return rotate_in_real_numbers(x, table)


def rotate_in_real_numbers(x: Tensor, table: Tensor) -> Tensor:
    """As `rotate`, without complex numbers."""
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)  # (B, heads, T, 32) each
    cos, sin = table.to(x.dtype).unbind(-1)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


def token_ids(kind: int, embedding: Tensor, grid: int) -> Tensor:
    """Ids of L grid tokens: structure embedding (B, L, K) -> (B, L, K + 3) as (kind, structure, row, column)."""
    batch, positions, _ = embedding.shape
    index = torch.arange(positions, device=embedding.device)
    rows, columns = index // grid, index % grid
    kinds = torch.full_like(index, kind)
    place = torch.stack((kinds, rows, columns), dim=-1).float().expand(batch, -1, -1)  # (B, L, 3)
    return torch.cat((place[..., :1], embedding, place[..., 1:]), dim=-1)


def cluster_ids(kind: int, stage: int, order: Tensor, grid: int) -> Tensor:
    """Ids of the tokens of the 2^stage clusters: order of the positions (B, L) -> (B, 2^stage, K + 3).

    A cluster is known up to its stage: its bits are those of its number. Row and column are the means over its
    positions.
    """
    last = last_stage(order.shape[1])
    clusters = torch.arange(2**stage, device=order.device)
    channel = torch.arange(last, device=order.device)
    bits = (clusters[:, None] >> (stage - 1 - channel).clamp_min(0)) & 1  # (2^stage, K)
    known = torch.where(channel < stage, 2.0 * bits, 1.0).expand(order.shape[0], -1, -1)
    place = neighbour_means(torch.stack((order // grid, order % grid), dim=-1).float(), 2**stage)  # (B, 2^stage, 2)
    return torch.cat((torch.full_like(place[..., :1], float(kind)), known, place), dim=-1)


def class_token_ids(batch: int, last_stage: int, device: torch.device) -> Tensor:
    """Ids of the class token: kind CLASS, no bit known, row and column 1, which makes all of them 1: (B, 1, K + 3)."""
    return torch.full((batch, 1, last_stage + 3), float(CLASS), device=device)
