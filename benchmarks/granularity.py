"""Building granularity sequences, by positions L and batch, against a sequential scan.

Milliseconds per image, medians over rounds in turns, of random latents: structure is the clustering
(`nvg.granularity.structure_codes`), content the residual quantization along it, at V = 4096, e = 32 for L = 256 and
V = 512, e = 16 below. sequential: the greedy matching as the method's sentence says it, a pair at a time in Python
(`tests/support/reference.py`), one image; the section fails if its codes differ. times: sequential by structure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from benchmarks.common import TableRow, median_seconds, say
from nvg.autoencoder import GranularityQuantizer
from nvg.config import TokenizerConfig
from nvg.granularity import structure_codes
from tests.support.reference import sequential_codes


def run(size: str) -> list[TableRow]:
    """The rows of every L and batch."""
    grids, rounds = ((4, 8, 16), 5) if size == "full" else ((4,), 1)
    return [row for grid in grids for row in compare(grid, rounds)]


def compare(grid: int, rounds: int) -> list[TableRow]:
    """The rows of batches of 1, 8 and 64 images of grid * grid positions."""
    positions = grid**2
    say(f"granularity: L = {positions}")
    width, entries = (32, 4096) if positions >= 256 else (16, 512)
    torch.manual_seed(0)
    config = TokenizerConfig(image_size=grid, channels=3, widths=[width], code_width=width, codebook_size=entries)
    quantizer = GranularityQuantizer(config).eval().requires_grad_(False)
    latents = torch.randn(64, positions, width)
    codes = structure_codes(latents)
    if not torch.equal(codes[0], sequential_codes(latents[0])):
        raise AssertionError(f"L = {positions}: clustering in rounds and the sequential scan give different codes")
    variants: dict[str, Callable[[], object]] = {"sequential": partial(sequential_codes, latents[0])}
    batches = (1, 8, 64)
    for images in batches:
        variants[f"structure {images}"] = partial(structure_codes, latents[:images])
        variants[f"content {images}"] = partial(quantizer.tokenize, latents[:images], codes[:images])
    with torch.inference_mode():
        seconds = median_seconds(variants, rounds)
    rows = []
    for images in batches:
        structure = seconds[f"structure {images}"] / images
        values = {
            "rounds": rounds,
            "structure, ms": 1000 * structure,
            "content, ms": 1000 * seconds[f"content {images}"] / images,
            "sequential, ms": 1000 * seconds["sequential"],
            "times": seconds["sequential"] / structure,
        }
        rows.append(TableRow(f"L = {positions}, batch {images}", values))
    return rows


def plot(rows: Sequence[TableRow], path: Path) -> None:
    """Draw the milliseconds per image, on a logarithmic scale."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 3.6), layout="constrained")
    for column, colour, marker in (
        ("sequential, ms", "#999999", "s"),
        ("structure, ms", "#c4561a", "o"),
        ("content, ms", "#1f5fa8", "^"),
    ):
        values = [float(row.values[column] or 0) for row in rows]
        axes.plot(range(len(rows)), values, marker, color=colour, label=column.split(",")[0])
    axes.set_xticks(range(len(rows)), [row.case.replace(", ", "\n") for row in rows], fontsize=8)
    axes.set_yscale("log")
    axes.set_ylabel("ms an image")
    axes.grid(axis="y", color="#dddddd")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
