"""torch.compile for training: block by block, outside the models."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from nvg.generator.block import Block
from nvg.generator.compiled import cache_folder


def compile_blocks(module: nn.Module, backend: Any = "inductor") -> None:
    """Have torch compile the transformer blocks of a module, in place, on their first use: minutes for the first
    process, less for the next one, which finds the code on disk.

    All blocks of a network share their code, so its depth costs no time: one graph for the first block, which leaves no
    segment out, one for the others, and one for the last where it keeps some tokens alone. Whatever is drawn is drawn
    outside, so the draws are those of the blocks as they are, and results differ by rounding. State and hooks are the
    modules' own: what wraps them (nvg/training/parallel.py) does so as before. backend: of torch.compile.
    """
    cache_folder()
    for block in module.modules():
        if isinstance(block, Block):
            computed: Any = torch.compile(block.computed, dynamic=False, fullgraph=True, backend=backend)
            block.computed = computed  # type: ignore[method-assign]
