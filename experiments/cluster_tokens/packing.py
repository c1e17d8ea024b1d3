"""All stages of cluster tokens in a training step: one packed call, one call a stage, or one under a mask?

    python -m experiments.cluster_tokens.packing [--rounds 5]

Forward and backward of the content generator on random tokens, one thread, variants in turns; and the operations that
the host starts, which is what a GPU waits for at these sizes.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import date
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from nvg.config import ContentConfig
from nvg.describe import Counter
from nvg.generator import ContentGenerator

SIZES = {"4x4, d2, 16 images": (4, 2, 16), "8x8, d3, 16 images": (8, 3, 16), "16x16, d4, 4 images": (16, 4, 4)}


def masked(q: Tensor, k: Tensor, v: Tensor, queries: Sequence[int], keys: Sequence[int]) -> Tensor:
    """Attention within segments as one call under a block-diagonal mask."""
    of_query, of_key = (torch.repeat_interleave(torch.arange(len(n)), torch.tensor(n)) for n in (queries, keys))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=of_query[:, None] == of_key)


def variants(grid: int, depth: int, images: int) -> dict[str, Callable[[], None]]:
    """The ways to compute all stages, each a forward and a backward pass."""
    config = ContentConfig(
        depth=depth,
        grid=grid,
        code_width=16,
        codebook_size=512,
        num_classes=10,
        repa_block=None,
        repa_width=1,
        tokens="clusters",
        position_network=True,
    )
    content = ContentGenerator(config).train()
    last, positions = content.last_stage, grid**2
    codes = torch.stack([torch.randperm(positions) for _ in range(images)])
    canvases = [torch.randn(images, positions, 16) for _ in range(last + 1)]
    labels = torch.randint(10, (images,))

    def call(stages: Sequence[int]) -> None:
        tables = [content.rotary(codes, stage) for stage in stages]
        inputs = [canvases[stage] for stage in stages]
        differences, _ = content(inputs, codes, labels, torch.tensor(list(stages)), tables)
        sum(one.square().mean() for one in differences).backward()  # type: ignore[union-attr]

    def under_mask() -> None:
        with mock.patch("nvg.generator.block.attention", masked):
            call(range(last + 1))

    def one_by_one() -> None:
        for stage in range(last + 1):
            call([stage])

    return {
        "packed, attention a stage": lambda: call(range(last + 1)),
        "a call a stage": one_by_one,
        "packed, under a mask": under_mask,
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    print(f"one thread, torch {torch.__version__}, {date.today()}\n")
    print("| size | variant | ms | times the first | operations |\n| --- | --- | --- | --- | --- |")
    for size, numbers in SIZES.items():
        ways, seconds = variants(*numbers), defaultdict(list)
        for _ in range(rounds):
            for name, way in ways.items():
                start = time.perf_counter()
                way()
                seconds[name].append(time.perf_counter() - start)
        first = statistics.median(next(iter(seconds.values())))
        for name, way in ways.items():
            with Counter() as counter:
                way()
            median = statistics.median(seconds[name])
            print(f"| {size} | {name} | {1000 * median:.0f} | {median / first:.2f} | {counter.ops} |", flush=True)


if __name__ == "__main__":
    main()
