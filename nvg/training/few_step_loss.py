"""The loss of a few-step structure generator: a shortcut model of the guided flow (docs/fast_sampling.md).

After Frans et al., "One Step Diffusion via Shortcut Models" (arXiv 2410.12557), with a frozen teacher for the flow
itself. With s(z, t, d, w) the network, t from 1 (noise) to 0, and w the guidance scale:

    d = 0   s is the teacher's guided velocity        v(z, t, "no class") + w (v(z, t, class) - v(z, t, "no class"))
    d > 0   s is the mean of two steps of half the size   (s(z, t, d/2, w) + s(z', t - d/2, d/2, w)) / 2,
            z' = z - d/2 s(z, t, d/2, w)

Known channels are clean at t, and put back to clean in z'. Only unknown ones are learned.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from nvg.config import DistillConfig
from nvg.generator import StructureGenerator
from nvg.generator.guidance import guided
from nvg.generator.structure import STEP_COUNTS, signed_bits


class FewStep(nn.Module):
    """The student with its loss: a module that is called with the loss's inputs."""

    def __init__(
        self,
        student: StructureGenerator,
        average: StructureGenerator,
        teacher: StructureGenerator,
        config: DistillConfig,
    ) -> None:
        """average: the student with averaged weights, of which the targets of d > 0 are made; teacher: frozen."""
        super().__init__()
        self.student = student
        self.config = config
        self.frozen = (average, teacher)  # in a tuple: no part of this module's state

    def forward(
        self, canvas: Tensor, labels: Tensor, stage: Tensor, codes: Tensor, rng: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss and its terms, mean squared errors: of N rows those with d = 0 (`flow`) and with d > 0 (`shortcut`).

        canvas x_i (N, L, e), labels (N,), stage (N,) the stage to be generated, codes (N, L) whole; rng: on the CPU.
        """
        average, teacher = self.frozen
        no_class = teacher.config.num_classes
        rows, positions = codes.shape
        last, device = self.student.last_stage, codes.device
        complete = signed_bits(codes, last)  # (N, L, K)
        unknown = torch.arange(last, device=device) >= stage[:, None, None] - 1  # (N, 1, K)
        noise = torch.randn(rows, positions, last, generator=rng).to(device)
        guidance = 1 + (self.student.config.max_guidance - 1) * torch.rand(rows, generator=rng)
        size, time = draw_steps(rows, self.config.flow_share, rng)
        flow, half = size == 0, size / 2
        inner = torch.where(half < 1 / STEP_COUNTS[-1], 0.0, half)  # below the smallest size it is the flow itself
        split = [index.nonzero()[:, 0].to(device) for index in (flow, ~flow)]
        size, time, half, inner, guidance = (value.to(device) for value in (size, time, half, inner, guidance))
        fraction = time[:, None, None]
        noisy = torch.where(unknown, fraction * noise + (1 - fraction) * complete, complete)

        table = self.student.rotary(codes, stage)  # of all three networks
        target = torch.empty_like(noisy)
        with torch.no_grad():
            some = split[0]
            flow_of = (noisy[some], time[some], canvas[some], stage[some], table[some])
            target[some] = guided(velocity_of(teacher), labels[some], flow_of, guidance[some], no_class).float()
            some = split[1]
            condition = (canvas[some], labels[some], stage[some], table[some], inner[some], guidance[some])
            first = average(noisy[some], time[some], *condition).float()
            between = noisy[some] - half[some, None, None] * first
            between = torch.where(unknown[some], between, complete[some])
            second = average(between, time[some] - half[some], *condition).float()
            target[some] = (first + second) / 2

        velocity = self.student(noisy, time, canvas, labels, stage, table, size, guidance).float()
        error = ((velocity - target).square() * unknown).sum(dim=(1, 2)) / (unknown.sum(dim=(1, 2)) * positions)
        terms = {name: error[some].mean() for name, some in zip(("flow", "shortcut"), split, strict=True)}
        return terms["flow"] + terms["shortcut"], terms


def draw_steps(rows: int, flow_share: float, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Step sizes d and times t, (N,) each on the CPU. The first share of rows has d = 0 and t in [0, 1]; the others
    have d = 1 ... 1/16, each equally often but for chance, and t at the start of a step of that size."""
    flows = round(rows * flow_share)
    counts = torch.tensor(STEP_COUNTS, dtype=torch.float32)
    counts = counts[torch.randint(len(STEP_COUNTS), (rows,), generator=rng)]
    position = torch.rand(rows, generator=rng)
    time = 1 - (position * counts).floor() / counts
    size = 1 / counts
    size[:flows], time[:flows] = 0.0, position[:flows]
    order = torch.randperm(rows, generator=rng)
    return size[order], time[order]


def velocity_of(structure: StructureGenerator) -> Callable[..., Tensor]:
    """v as `guided` calls it, labels first: (labels, noisy, time, canvas, stage, table) -> (N, L, K)."""
    return lambda labels, noisy, time, canvas, stage, table: structure(noisy, time, canvas, labels, stage, table)
