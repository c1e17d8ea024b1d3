"""Stages that a caller gives and the sampler does not generate (docs/method.md, sampling): structure, or structure and
content.

Three ways to a `Given`: a drawn binary map (stage 1), the first n structure maps of a reference, the first n
structures and contents of a reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nvg.granularity import GranularitySequence, codes_from_map, last_stage, split_codes, structure_map


@dataclass(frozen=True)
class Given:
    """Stages that are not generated, for N images.

    codes: (N, L) int64, of which the bits of stages 1 ... structure_stages are given. content: the tokens of stages
    0 ... content_stages - 1. moved: (N,) positions that rebalancing a drawing moved to the other half; 0 otherwise.
    """

    codes: Tensor
    structure_stages: int
    content: list[Tensor]
    moved: Tensor

    @property
    def content_stages(self) -> int:
        """The number of stages whose content is given, from stage 0."""
        return len(self.content)

    def codes_of(self, stage: int) -> Tensor | None:
        """Structure codes (N, L) with the bits of stages 1 ... `stage` alone, or None where these are not given."""
        if stage > self.structure_stages:
            return None
        return codes_from_map(structure_map(self.codes, stage), stage)

    def tokens_of(self, stage: int) -> Tensor | None:
        """Content tokens c_i of `stage`, (N, 2^i), or None where these are not given."""
        return self.content[stage] if stage < self.content_stages else None

    def each(self) -> list[Given]:
        """A Given of one image for each of the N images."""
        return [
            Given(
                self.codes[j : j + 1],
                self.structure_stages,
                [tokens[j : j + 1] for tokens in self.content],
                self.moved[j : j + 1],
            )
            for j in range(self.codes.shape[0])
        ]

    def to(self, device: torch.device) -> Given:
        """A copy on another device."""
        return Given(
            self.codes.to(device),
            self.structure_stages,
            [tokens.to(device) for tokens in self.content],
            self.moved.to(device),
        )


def given_from_sequence(sequence: GranularitySequence, *, structure_stages: int, content_stages: int = 0) -> Given:
    """Keep a reference's structure maps of stages 1 ... structure_stages and its content of the first
    content_stages stages (0 ... content_stages - 1).

    Raises ValueError when a stage is out of range, or when content is to be kept whose structure is not.
    """
    last = sequence.last_stage
    if not 0 <= structure_stages <= last:
        raise ValueError(f"structure_stages={structure_stages} is none of 0 ... {last}")
    if not 0 <= content_stages <= structure_stages + 1:
        raise ValueError(
            f"content_stages={content_stages}: content can be kept of stages whose structure is kept too, so of at "
            f"most {structure_stages + 1} stages with structure_stages={structure_stages}"
        )
    return Given(
        sequence.codes,
        structure_stages,
        list(sequence.content[:content_stages]),
        torch.zeros_like(sequence.codes[:, 0]),
    )


def given_from_drawing(drawing: Tensor, grid: int) -> Given:
    """A drawn binary map as the structure of stage 1: drawing (N, H, W) in [0, 1], any size and balance.

    The drawing is averaged down to the grid and cut at one half. Stage 1 has equal halves, so an unbalanced drawing
    is rebalanced along its border: the smaller side grows by the positions nearest to it (raster order among equals),
    and `moved` tells how many changed. Raises ValueError for a drawing that is empty or full: it has no border.
    """
    if drawing.dim() != 3:
        raise ValueError(f"a drawing has shape (N, H, W), not {tuple(drawing.shape)}")
    positions = grid**2
    last = last_stage(positions)
    coverage = F.adaptive_avg_pool2d(drawing.float()[:, None], grid).flatten(1)  # (N, L)
    drawn = coverage >= 0.5
    for index, count in enumerate(drawn.sum(dim=1).tolist()):
        if count in (0, positions):
            raise ValueError(
                f"drawing {index} is {'empty' if count == 0 else 'full'} on the {grid} x {grid} grid: "
                "draw a shape that covers some positions and leaves others free"
            )
    score = _signed_distance(drawn, grid)
    codes = split_codes(torch.zeros_like(drawn, dtype=torch.int64), 1, score)
    # The halves' names may be swapped against the drawing (position 0 has bit 0 by convention).
    half = codes >> (last - 1) == 1
    differs = (half != drawn).sum(dim=1)
    moved = torch.minimum(differs, positions - differs)
    return Given(codes, 1, [], moved)


def _signed_distance(drawn: Tensor, grid: int) -> Tensor:
    """Distance to the nearest position of the other side, positive inside: (N, L) bool -> (N, L) float."""
    index = torch.arange(grid**2, device=drawn.device)
    point = torch.stack((index // grid, index % grid), dim=1).float()
    distance = torch.cdist(point, point)  # (L, L)
    other = drawn[:, :, None] != drawn[:, None, :]
    nearest = distance.expand_as(other).masked_fill(~other, torch.inf).amin(dim=2)
    return torch.where(drawn, nearest, -nearest)


def one_each(given: Given | Sequence[Given | None] | None, count: int, positions: int) -> list[Given]:
    """Turn `given` into one Given per image, of one image each. Raises ValueError where sizes do not fit."""
    if isinstance(given, Given):
        if tuple(given.codes.shape) not in ((1, positions), (count, positions)):
            raise ValueError(
                f"the given structure has shape {tuple(given.codes.shape)}, {count} images of this model need "
                f"({count}, {positions}) or (1, {positions})"
            )
        return given.each() * (count if given.codes.shape[0] == 1 else 1)
    if given is not None and len(given) != count:
        raise ValueError(f"{len(given)} given for {count} images: one (or None) per image")
    nothing = Given(torch.zeros(1, positions, dtype=torch.int64), 0, [], torch.zeros(1, dtype=torch.int64))
    each = [one or nothing for one in given or [None] * count]
    for one in each:
        if tuple(one.codes.shape) != (1, positions):
            raise ValueError(f"a given structure has shape {tuple(one.codes.shape)}, this model needs (1, {positions})")
    return each
