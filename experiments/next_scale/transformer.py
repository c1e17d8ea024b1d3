"""The next-scale transformer: all tokens of a scale at once, from the scales before it (Tian et al., section 3.2).

The block is ours (nvg/generator/block.py): attention and MLP in parallel, AdaLN by class and scale, RMS norm of queries
and keys, rotary ids. What is the recipe's: the sequence of all scales under a block-causal mask, the class as the token
of scale 0, the canvas over a scale's cells as its input tokens, a learned vector of each token, linear logits, and
keys and values that are kept while drawing. Input scales and the position network are those of our content generator.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nvg.config import ContentConfig
from nvg.generator.block import Block, attention, drop_rates, modulate
from nvg.generator.rope import HEAD_WIDTH, rotary_table
from nvg.generator.tokens import PositionNetwork

AXES = [8, (HEAD_WIDTH - 8) // 2, (HEAD_WIDTH - 8) // 2]  # a head's channels of scale, row and column


class CausalBlock(Block):
    """A block whose segments, the scales, also see those before them. While it keeps a cache, its call is the scale
    that follows those of the calls before."""

    cache: list[tuple[Tensor, Tensor]] | None = None  # keys and values of each call

    def attend(self, q: Tensor, k: Tensor, v: Tensor, queries: Sequence[int], keys: Sequence[int]) -> Tensor:
        if self.cache is not None:
            assert len(queries) == 1
            self.cache.append((k, v))
            k, v = (torch.cat(some, dim=2) for some in zip(*self.cache, strict=True))
            return attention(q, k, v, queries, [k.shape[2]])
        # The block-causal mask, without computing what it hides: scale k sees the first n_0^2 + ... + n_k^2 keys.
        each = zip(q.split(list(queries), dim=2), accumulate(keys), strict=True)
        return torch.cat(
            [F.scaled_dot_product_attention(one, k[:, :, :end], v[:, :, :end]) for one, end in each], dim=2
        )


class NextScale(nn.Module):
    """The generator, with depth, code width, codebook and classes of a content generator's configuration. Labels are
    class indices; `num_classes` is "no class"."""

    input_scales: Tensor
    table: Tensor

    def __init__(self, config: ContentConfig, scales: Sequence[int]) -> None:
        super().__init__()
        self.config, self.scales = config, tuple(scales)
        width, tokens = 64 * config.depth, sum(side**2 for side in scales)
        self.ends = list(accumulate(side**2 for side in scales))
        self.class_token = nn.Embedding(config.num_classes + 1, width)
        self.class_condition = nn.Embedding(config.num_classes + 1, width)
        self.scale_condition = nn.Embedding(len(scales), width)
        self.embed = nn.Linear(config.code_width, width)
        self.place = nn.Parameter(0.02 * torch.randn(tokens, width))
        self.position_network = PositionNetwork(tokens, config.code_width, width)
        self.blocks = nn.ModuleList(CausalBlock(width, rate) for rate in drop_rates(config.depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.modulation = nn.Linear(width, 2 * width)
        self.to_logits = nn.Linear(width, config.codebook_size)
        for layer in (self.modulation, self.to_logits):  # the first logits are all alike
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.register_buffer("input_scales", torch.ones(len(scales)))  # of x_k; that of x_0 is not used
        self.register_buffer("table", rotary_table(token_ids(scales), AXES), persistent=False)  # (1, 1, T, 32, 2)

    @torch.no_grad()
    def begin(self, inputs: Sequence[Tensor]) -> None:
        """Set the input scales before the first step, by the inputs of some images, (N, n_k^2, e) each."""
        for scale in range(1, len(self.scales)):
            self.input_scales[scale] = 1 / inputs[scale].std().clamp_min(1e-6)

    def tokens(self, scale: int, seen: Tensor, labels: Tensor) -> Tensor:
        """The input tokens of a scale: x_k over its cells, (N, n^2, e), and labels (N,) -> (N, n^2, w)."""
        own = slice(self.ends[scale] - self.scales[scale] ** 2, self.ends[scale])
        if scale == 0:
            return self.class_token(labels)[:, None] + self.place[own]
        network, canvas = self.position_network, seen * self.input_scales[scale]
        hidden = F.silu(network.canvas(canvas) + network.place[own])
        return self.embed(canvas) + network.out(hidden) + self.place[own]

    def forward(self, inputs: Sequence[Tensor], labels: Tensor, first: int = 0) -> list[Tensor]:
        """Logits of the tokens of consecutive scales, from number `first` on: x_k over the cells of each,
        (N, n_k^2, e), and labels (N,) -> (N, n_k^2, V) each. Within `caching` it is one scale a call, which sees those
        of the calls before; without it, `first` is 0."""
        scales = range(first, first + len(inputs))
        lengths = [self.scales[scale] ** 2 for scale in scales]
        vector = self.class_condition(labels)[:, None] + self.scale_condition.weight[first : first + len(inputs)]
        condition = F.silu(vector)  # (N, S, w)
        x = torch.cat([self.tokens(scale, one, labels) for scale, one in zip(scales, inputs, strict=True)], dim=1)
        table = self.table[:, :, self.ends[first] - lengths[0] : self.ends[scales[-1]]]
        for block in self.blocks:
            x = block(x, condition, table, lengths)
        shift, scale = self.modulation(condition).chunk(2, dim=-1)
        return list(self.to_logits(modulate(self.norm(x), shift, scale, lengths)).split(lengths, dim=1))

    @contextmanager
    def caching(self) -> Iterator[None]:
        """Within this context each call goes on from the scales of the calls before."""
        blocks = [block for block in self.blocks if isinstance(block, CausalBlock)]
        for block in blocks:
            block.cache = []
        try:
            yield
        finally:
            for block in blocks:
                block.cache = None


def token_ids(scales: Sequence[int]) -> Tensor:
    """Rotary ids of all tokens: scale, and row and column of the cell's middle on the latent grid, (1, T, 3)."""
    ids = []
    for number, side in enumerate(scales):
        middle = (torch.arange(side) + 0.5) * scales[-1] / side - 0.5
        ids.append(torch.cartesian_prod(torch.tensor([float(number)]), middle, middle))
    return torch.cat(ids)[None]
