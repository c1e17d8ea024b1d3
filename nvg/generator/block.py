"""The transformer both generators are made of: a block of parallel attention and MLP, and its conditioning.

docs/method.md, transformer block. At width w: 7 w^2 parameters project in (q, k, v and the MLP's 4 w), 5 w^2 project
out, 3 w^2 modulate (shift, scale, gate): 15 w^2 a block.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nvg.generator.rope import HEAD_WIDTH, rotate


def by_rows(layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """layer(x) for x (..., w) with few rows, as many rows would have it, to the last bit.

    The CPU's matrix product of fewer than four rows runs another kernel, whose sums round differently. An image must
    not depend on how many others are drawn with it, so fewer rows are filled up to four.
    """
    rows = x.shape[:-1].numel()
    if rows >= 4:
        return layer(x)
    filled = layer(F.pad(x.reshape(rows, -1), (0, 0, 0, 4 - rows)))
    return filled[:rows].reshape(*x.shape[:-1], -1)


class Block(nn.Module):
    """Self-attention and MLP in parallel, modulated by a condition vector: (B, T, w) -> (B, T, w)."""

    def __init__(self, width: int, drop_rate: float = 0.0) -> None:
        """drop_rate: the share of a batch's rows that skip this block in training (Huang et al., stochastic depth)."""
        super().__init__()
        self.width = width
        self.drop_rate = drop_rate
        self.heads = width // HEAD_WIDTH
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.modulation = nn.Linear(width, 3 * width)
        self.project_in = nn.Linear(width, 7 * width)
        self.project_out = nn.Linear(5 * width, width)
        self.query_norm = nn.RMSNorm(HEAD_WIDTH, eps=1e-6)
        self.key_norm = nn.RMSNorm(HEAD_WIDTH, eps=1e-6)
        nn.init.zeros_(self.modulation.weight)  # gate 0: every block starts as the identity
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, condition: Tensor, table: Tensor, keep_last: int | None = None) -> Tensor:
        """x (B, T, w); condition (B, w), already activated; table (B, 1, T, 32, 2) of `rotary_table`.

        keep_last: the number of tokens to return, counted from the end: (B, keep_last, w). The others are attended to,
        but their queries and MLPs, which nobody reads, are not computed: the last block of a backbone.
        """
        shift, scale, gate = by_rows(self.modulation, condition)[:, None].chunk(3, dim=-1)  # (B, 1, w) each
        inside = self.norm(x) * (1 + scale) + shift
        if keep_last is None:
            hidden = self.project_in(inside)  # (B, T, 7w)
            q, k, v, mlp = hidden.split((self.width, self.width, self.width, 4 * self.width), dim=-1)
        else:
            q_weight, kv_weight, mlp_weight = self.project_in.weight.split((self.width, 2 * self.width, 4 * self.width))
            q_bias, kv_bias, mlp_bias = self.project_in.bias.split((self.width, 2 * self.width, 4 * self.width))
            k, v = F.linear(inside, kv_weight, kv_bias).chunk(2, dim=-1)  # (B, T, w) each
            x, inside = x[:, -keep_last:], inside[:, -keep_last:]
            q, mlp = F.linear(inside, q_weight, q_bias), F.linear(inside, mlp_weight, mlp_bias)
        q, k, v = (value.unflatten(-1, (self.heads, HEAD_WIDTH)).transpose(1, 2) for value in (q, k, v))
        q = rotate(self.query_norm(q), table[:, :, -q.shape[2] :])  # (B, heads, T or keep_last, 64)
        k = rotate(self.key_norm(k), table)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        out = self.project_out(torch.cat((attended, F.gelu(mlp, approximate="tanh")), dim=-1))
        return x + self._surviving(gate * out)

    def _surviving(self, change: Tensor) -> Tensor:
        """In training, what a block adds to whole rows (B, T, w): nothing at the drop rate, else over the keep rate."""
        if not self.training or self.drop_rate == 0.0:
            return change
        kept = torch.rand(change.shape[0], 1, 1, device=change.device) >= self.drop_rate
        return change * (kept / (1.0 - self.drop_rate)).to(change.dtype)


class Backbone(nn.Module):
    """A stack of `depth` blocks on one sequence, with class, stage and optionally time in the modulation.

    The class is also a token in front of the sequence; index `num_classes` is "no class", for guidance.
    """

    def __init__(self, *, depth: int, width: int, num_classes: int, last_stage: int, timed: bool) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.class_condition = nn.Embedding(num_classes + 1, width)
        self.class_token = nn.Embedding(num_classes + 1, width)
        self.stage_condition = nn.Embedding(last_stage + 1, width)
        self.time_condition = TimeEmbedding(width) if timed else None
        self.blocks = nn.ModuleList(Block(width, rate) for rate in drop_rates(depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.modulation = nn.Linear(width, 2 * width)
        self.gradient_checkpointing = False
        # Embeddings keep torch's unit variance: at the usual 0.02 classes are told apart hundreds of steps later.
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def condition(self, labels: Tensor, stage: Tensor, time: Tensor | None, extra: Tensor | None) -> Tensor:
        """The activated condition vector (B, w): labels (B,), stage (B,), time (B,) or None, extra (B, w) or None."""
        vector = self.class_condition(labels) + self.stage_condition(stage)
        if self.time_condition is not None:
            assert time is not None
            vector = vector + self.time_condition(time)
        return F.silu(vector if extra is None else vector + extra.to(vector.dtype))

    def forward(
        self,
        tokens: Tensor,
        table: Tensor,
        labels: Tensor,
        stage: Tensor,
        time: Tensor | None = None,
        *,
        extra: Tensor | None = None,
        tap: int | None = None,
        keep_last: int | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """tokens (B, T, w) without the class token, table for 1 + T tokens -> (output (B, T, w), hidden or None).

        extra (B, w) is added to the condition. `hidden` is the output of block number `tap` (from 1), without the class
        token, for representation alignment. keep_last: the number of tokens of the output, counted from the end.
        """
        condition = self.condition(labels, stage, time, extra)
        first = self.class_token(labels)[:, None]
        x = torch.cat((first, tokens.to(first.dtype)), dim=1)  # (B, 1 + T, w)
        hidden = None
        for number, block in enumerate(self.blocks, start=1):
            keep = keep_last if number == len(self.blocks) else None
            if self.gradient_checkpointing and self.training:
                x = checkpoint(block, x, condition, table, keep, use_reentrant=False)
            else:
                x = block(x, condition, table, keep)
            if number == tap:
                hidden = x[:, 1:]
        x = x[:, -(keep_last or tokens.shape[1]) :]
        shift, scale = by_rows(self.modulation, condition)[:, None].chunk(2, dim=-1)
        return (self.norm(x) * (1 + scale) + shift).to(tokens.dtype), hidden


def drop_rates(depth: int) -> list[float]:
    """The share of rows that skip each block in training: from 0 at the first one to 0.1 depth / 24 at the last."""
    return [0.1 * depth / 24 * block / max(depth - 1, 1) for block in range(depth)]


class TimeEmbedding(nn.Module):
    """A number in [0, 1], such as the flow time, as a condition: 64 sinusoids and a two-layer MLP, (B,) -> (B, w).

    The sinusoids are cos and then sin of 1000 t 10000^(-k / 32), k = 0 ... 31.
    """

    frequency: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("frequency", torch.exp(-math.log(10_000.0) * torch.arange(32) / 32), persistent=False)
        self.mlp = nn.Sequential(nn.Linear(64, width), nn.SiLU(), nn.Linear(width, width))

    def begin_as_zero(self) -> None:
        """Make the output zero: an untrained embedding adds nothing to the condition."""
        for parameter in self.mlp[-1].parameters():
            nn.init.zeros_(parameter)

    def sinusoids(self, time: Tensor) -> Tensor:
        """The input of the MLP, float32: (B,) -> (B, 64)."""
        angle = (1000.0 * time.float())[:, None] * self.frequency
        return torch.cat((angle.cos(), angle.sin()), dim=-1)

    def forward(self, time: Tensor) -> Tensor:
        return by_rows(self.mlp, self.sinusoids(time).to(next(self.mlp.parameters()).dtype))
