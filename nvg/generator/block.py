"""The transformer both generators are made of: a block of parallel attention and MLP, and its conditioning.

docs/method.md, transformer block. At width w: 7 w^2 parameters project in (q, k, v and the MLP's 4 w), 5 w^2 project
out, 3 w^2 modulate (shift, scale, gate): 15 w^2 a block.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nvg.generator.rope import HEAD_WIDTH, rotate


def by_rows(layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """layer(x) for x (..., w) with few rows, on a CPU as many rows would have it, to the last bit.

    The CPU's matrix product of fewer than four rows runs another kernel, whose sums round differently. An image must
    not depend on how many others are drawn with it, so there fewer rows are filled up to four.
    """
    rows = x.shape[:-1].numel()
    if rows >= 4 or x.device.type != "cpu":
        return layer(x)
    filled = layer(F.pad(x.reshape(rows, -1), (0, 0, 0, 4 - rows)))
    return filled[:rows].reshape(*x.shape[:-1], -1)


class HeadNorm(nn.RMSNorm):
    """RMS norm of queries or keys: (..., 64) -> (..., 64), with the weight in the input's dtype.

    torch has no fused kernel for a float32 weight beside bfloat16 numbers, as autocast brings them together.
    """

    def __init__(self) -> None:
        super().__init__(HEAD_WIDTH, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


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
        self.query_norm = HeadNorm()
        self.key_norm = HeadNorm()
        nn.init.zeros_(self.modulation.weight)  # gate 0: every block starts as the identity
        nn.init.zeros_(self.modulation.bias)

    def forward(
        self,
        x: Tensor,
        condition: Tensor,
        table: Tensor,
        lengths: Sequence[int],
        keep_last: int | None = None,
        chance: Tensor | None = None,
    ) -> Tensor:
        """x (B, T, w): S segments of `lengths` side by side, which do not see each other; condition (B, S, w), already
        activated; table (B, 1, T, 32, 2) of `rotary_table`.

        keep_last: the number of tokens of each segment to return, counted from its end: (B, S keep_last, w). The others
        are attended to, but their queries and MLPs, which nobody reads, are not computed: the last block of a backbone.
        chance (B, S): a uniform number of each segment, which decides in training whether it skips this block; by
        default from torch's own random generator.
        """
        return self.computed(x, condition, table, lengths, keep_last, self._surviving(condition, chance))

    def computed(
        self,
        x: Tensor,
        condition: Tensor,
        table: Tensor,
        lengths: Sequence[int],
        keep_last: int | None,
        surviving: Tensor | None,
    ) -> Tensor:
        """The output of `forward` without its chance: surviving (B, S, 1), or None, are factors of the gates. This is
        the same function for every block of a backbone, so that torch compiles it once for all
        (nvg/training/compiled.py)."""
        shift, scale, gate = by_rows(self.modulation, condition).chunk(3, dim=-1)  # (B, S, w) each
        inside = modulate(self.norm(x), shift, scale, lengths)
        kept = lengths
        if keep_last is None:
            hidden = by_rows(self.project_in, inside)  # (B, T, 7w)
            q, k, v, mlp = hidden.split((self.width, self.width, self.width, 4 * self.width), dim=-1)
            query_table = table
        else:
            q_weight, kv_weight, mlp_weight = self.project_in.weight.split((self.width, 2 * self.width, 4 * self.width))
            q_bias, kv_bias, mlp_bias = self.project_in.bias.split((self.width, 2 * self.width, 4 * self.width))
            k, v = F.linear(inside, kv_weight, kv_bias).chunk(2, dim=-1)  # (B, T, w) each
            x, inside = ends(x, lengths, keep_last), ends(inside, lengths, keep_last)
            query_table = ends(table[:, 0].flatten(2), lengths, keep_last).unflatten(2, table.shape[-2:])[:, None]
            kept = [keep_last] * len(lengths)
            q, mlp = F.linear(inside, q_weight, q_bias), F.linear(inside, mlp_weight, mlp_bias)
        q, k, v = (value.unflatten(-1, (self.heads, HEAD_WIDTH)).transpose(1, 2) for value in (q, k, v))
        q = rotate(self.query_norm(q), query_table)  # (B, heads, T or S keep_last, 64)
        k = rotate(self.key_norm(k), table)
        attended = self.attend(q, k, v, kept, lengths).transpose(1, 2).flatten(2)
        out = by_rows(self.project_out, torch.cat((attended, F.gelu(mlp, approximate="tanh")), dim=-1))
        if surviving is not None:
            gate = gate * surviving.to(gate.dtype)
        return x + scaled(out, gate, kept)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, queries: Sequence[int], keys: Sequence[int]) -> Tensor:
        """What queries see of keys and values: those of their own segment. A derived block may show them more.
        Arguments and result are those of `attention`."""
        return attention(q, k, v, queries, keys)

    def _surviving(self, condition: Tensor, chance: Tensor | None) -> Tensor | None:
        """The factors of whole segments' gates (B, S, 1) in training: 0 at the drop rate, so that the block adds
        nothing, else 1 over the keep rate. None where no segment is left out. condition (B, S, w), chance (B, S)."""
        if not self.training or self.drop_rate == 0.0:
            return None
        if chance is None:
            chance = torch.rand(condition.shape[:2], device=condition.device)
        return (chance[..., None] >= self.drop_rate) / (1.0 - self.drop_rate)


# ---- segments: sequences side by side, so that one matrix product serves all of them ----


def modulate(x: Tensor, shift: Tensor, scale: Tensor, lengths: Sequence[int]) -> Tensor:
    """x (1 + scale) + shift, each segment with its own: x (B, T, w), shift and scale (B, S, w) -> (B, T, w)."""
    if len(lengths) == 1:
        return x * (1 + scale) + shift
    each = zip(x.split(list(lengths), dim=1), shift.split(1, dim=1), scale.split(1, dim=1), strict=True)
    return torch.cat([one * (1 + factor) + term for one, term, factor in each], dim=1)


def scaled(x: Tensor, gate: Tensor, lengths: Sequence[int]) -> Tensor:
    """x gate, each segment with its own: x (B, T, w), gate (B, S, w) -> (B, T, w)."""
    if len(lengths) == 1:
        return gate * x
    each = zip(x.split(list(lengths), dim=1), gate.split(1, dim=1), strict=True)
    return torch.cat([factor * one for one, factor in each], dim=1)


def ends(x: Tensor, lengths: Sequence[int], count: int) -> Tensor:
    """The last tokens of each segment: x (B, T, w) -> (B, S count, w)."""
    if len(lengths) == 1:
        return x[:, -count:]
    return torch.cat([one[:, -count:] for one in x.split(list(lengths), dim=1)], dim=1)


def attention(q: Tensor, k: Tensor, v: Tensor, queries: Sequence[int], keys: Sequence[int]) -> Tensor:
    """Attention within each segment: q (B, heads, sum of queries, 64), k and v (B, heads, sum of keys, 64) -> as q."""
    if len(keys) == 1:
        return F.scaled_dot_product_attention(q, k, v)
    each = zip(q.split(list(queries), dim=2), k.split(list(keys), dim=2), v.split(list(keys), dim=2), strict=True)
    return torch.cat([F.scaled_dot_product_attention(*one) for one in each], dim=2)


class Backbone(nn.Module):
    """A stack of `depth` blocks, with class, stage and optionally time in the modulation.

    The class is also a token in front of each sequence; index `num_classes` is "no class", for guidance.
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

    def condition(self, labels: Tensor, stages: Tensor, times: Tensor | None, extra: Tensor | None) -> Tensor:
        """The activated condition vectors (B, S, w): labels (B,), stages (B, S), times (B, S) or None, extra (B, 1, w),
        (B, S, w) or None."""
        vector = self.class_condition(labels)[:, None] + self.stage_condition(stages)
        if self.time_condition is not None:
            assert times is not None
            vector = vector + self.time_condition(times)
        return F.silu(vector if extra is None else vector + extra.to(vector.dtype))

    def forward(
        self,
        segments: Sequence[Tensor],
        tables: Sequence[Tensor],
        labels: Tensor,
        stages: Tensor,
        times: Tensor | None = None,
        *,
        extra: Tensor | None = None,
        tap: int | None = None,
        keep_last: int | None = None,
        chances: Tensor | None = None,
    ) -> tuple[list[Tensor], list[Tensor] | None]:
        """S segments of tokens, (B, T_s, w) each without the class token, their tables for 1 + T_s tokens, labels (B,),
        stages and times (B, S) -> (outputs (B, T_s, w) each, hidden or None).

        A segment is a sequence of its own: of one image at one stage. extra (B, 1, w) or (B, S, w) is added to the
        conditions. `hidden` are the outputs of block number `tap` (from 1), without the class tokens, for
        representation alignment. keep_last: the number of tokens of each output, counted from the end. chances
        (B, S, depth): the `chance` of each block.
        """
        condition = self.condition(labels, stages, times, extra)
        first = self.class_token(labels)[:, None]
        x = torch.cat([part for one in segments for part in (first, one.to(first.dtype))], dim=1)  # (B, T, w)
        table = tables[0] if len(tables) == 1 else torch.cat(list(tables), dim=2)
        lengths = [1 + one.shape[1] for one in segments]
        hidden = None
        for number, block in enumerate(self.blocks, start=1):
            keep = keep_last if number == len(self.blocks) else None
            chance = None if chances is None else chances[..., number - 1]
            if self.gradient_checkpointing and self.training:
                x = checkpoint(block, x, condition, table, lengths, keep, chance, use_reentrant=False)
            else:
                x = block(x, condition, table, lengths, keep, chance)
            if number == tap:
                hidden = [one[:, 1:] for one in x.split(lengths, dim=1)]
        kept = lengths if keep_last is None else [keep_last] * len(lengths)
        shift, scale = by_rows(self.modulation, condition).chunk(2, dim=-1)
        out = modulate(self.norm(x), shift, scale, kept).to(segments[0].dtype).split(kept, dim=1)
        return [one[:, 1:] for one in out] if keep_last is None else list(out), hidden


def by_stage(chances: Tensor | None) -> Tensor | None:
    """The chances of N images at S stages for a batch with a row for each stage and image, all images of a stage side
    by side: (N, S, depth) -> (S N, 1, depth); None as it is."""
    return None if chances is None else chances.transpose(0, 1).flatten(0, 1)[:, None]


def drop_rates(depth: int) -> list[float]:
    """The share of rows that skip each block in training: from 0 at the first one to 0.1 depth / 24 at the last."""
    return [0.1 * depth / 24 * block / max(depth - 1, 1) for block in range(depth)]


class TimeEmbedding(nn.Module):
    """A number in [0, 1], such as the flow time, as a condition: 64 sinusoids and a two-layer MLP, (...) -> (..., w).

    The sinusoids are cos and then sin of 1000 t 10000^(-k / 32), k = 0 ... 31.
    """

    frequency: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        frequency = torch.exp(-math.log(10_000.0) * torch.arange(32, device="cpu") / 32)
        self.register_buffer("frequency", frequency.to(torch.get_default_device()), persistent=False)
        self.mlp = nn.Sequential(nn.Linear(64, width), nn.SiLU(), nn.Linear(width, width))

    def begin_as_zero(self) -> None:
        """Make the output zero: an untrained embedding adds nothing to the condition."""
        for parameter in self.mlp[-1].parameters():
            nn.init.zeros_(parameter)

    def sinusoids(self, time: Tensor) -> Tensor:
        """The input of the MLP, float32: (...) -> (..., 64)."""
        angle = (1000.0 * time.float())[..., None] * self.frequency
        return torch.cat((angle.cos(), angle.sin()), dim=-1)

    def forward(self, time: Tensor) -> Tensor:
        return by_rows(self.mlp, self.sinusoids(time).to(next(self.mlp.parameters()).dtype))
