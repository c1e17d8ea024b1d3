"""The loss of a few-step structure generator: a shortcut model of the guided flow (docs/reference/few_step.md).

After Frans et al., "One Step Diffusion via Shortcut Models" (arXiv 2410.12557), with a frozen teacher for the flow
itself. With s(z, t, d, w) the network, t from 1 (noise) to 0, and w the guidance scale:

    d = 0   s is the teacher's guided velocity        v(z, t, "no class") + w (v(z, t, class) - v(z, t, "no class"))
    d > 0   s is the mean of two steps of half the size   (s(z, t, d/2, w) + s(z', t - d/2, d/2, w)) / 2,
            z' = z - d/2 s(z, t, d/2, w)

An image has one kind of d at all its stages. Known channels are clean at t, and put back to clean in z'. Only unknown
ones are learned.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

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
        self,
        canvases: Sequence[Tensor],
        labels: Tensor,
        codes: Tensor,
        stages: Sequence[int],
        rng: torch.Generator,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss and its terms, mean squared errors: of the images with d = 0 (`flow`) and of those with d > 0
        (`shortcut`), over unknown channels, images and S stages.

        canvases: x_0 ... x_K (N, L, e) each; labels (N,); codes (N, L) whole; stages to be generated; rng: on the CPU.
        """
        device, last = codes.device, self.student.last_stage
        complete = signed_bits(codes, last)  # (N, L, K)
        noise = torch.randn(complete.shape, generator=rng).to(device)
        guidance = 1 + (self.student.config.max_guidance - 1) * torch.rand(len(labels), generator=rng)
        steps, times, flow = draw_steps(len(labels), len(stages), self.config.flow_share, rng)
        flow, other = (index.nonzero()[:, 0].to(device) for index in (flow, ~flow))
        steps, times, guidance = (value.to(device) for value in (steps, times, guidance[:, None].expand_as(steps)))
        unknown = [torch.arange(last, device=device) >= stage - 1 for stage in stages]  # (K,) each
        noisy = [
            torch.where(free, complete + time[:, None, None] * (noise - complete), complete)
            for free, time in zip(unknown, times.T, strict=True)
        ]
        state = FlowState(
            noisy,
            times,
            [canvases[stage] for stage in stages],
            codes,
            labels,
            labels.new_tensor(list(stages)),
            [self.student.rotary(codes, stage) for stage in stages],
        )
        with torch.no_grad():
            targets = [
                self._of_flow(state.rows(flow), guidance[flow, 0]),
                self._of_two_steps(state.rows(other), steps[other], guidance[other], complete[other], unknown),
            ]
        velocities = self.student(*state, steps, guidance)
        terms = {}
        for name, some, target in zip(("flow", "shortcut"), (flow, other), targets, strict=True):
            each = zip(velocities, target, unknown, strict=True)
            errors = [(v[some].float() - expected)[..., free].square().mean() for v, expected, free in each]
            terms[name] = torch.stack(errors).mean()
        return terms["flow"] + terms["shortcut"], terms

    def _of_flow(self, state: FlowState, guidance: Tensor) -> list[Tensor]:
        """The teacher's guided velocities: guidance (n,) -> (n, L, K) a stage."""
        _, teacher = self.frozen
        count = len(state.noisy)

        def network(labels: Tensor, times: Tensor, codes: Tensor, *lists: Tensor) -> Tensor:
            noisy, canvases, tables = lists[:count], lists[count : 2 * count], lists[2 * count :]
            return torch.cat(teacher(noisy, times, canvases, codes, labels, state.stages, tables), dim=1).float()

        inputs = (state.times, state.codes, *state.noisy, *state.canvases, *state.tables)
        return list(guided(network, state.labels, inputs, guidance, teacher.config.num_classes).chunk(count, dim=1))

    def _of_two_steps(
        self, state: FlowState, steps: Tensor, guidance: Tensor, complete: Tensor, unknown: list[Tensor]
    ) -> list[Tensor]:
        """The mean of two steps of half the size, by averaged weights: steps and guidance (n, S), complete (n, L, K),
        unknown (K,) a stage -> (n, L, K) a stage."""
        average, _ = self.frozen
        half = steps / 2
        inner = torch.where(half < 1 / STEP_COUNTS[-1], 0.0, half)  # below the smallest size it is the flow itself
        first = [velocity.float() for velocity in average(*state, inner, guidance)]
        each = zip(state.noisy, half.T, first, unknown, strict=True)
        between = [torch.where(free, z - size[:, None, None] * v, complete) for z, size, v, free in each]
        second = average(*dataclasses.replace(state, noisy=between, times=state.times - half), inner, guidance)
        return [(a + b.float()) / 2 for a, b in zip(first, second, strict=True)]


@dataclass(frozen=True)
class FlowState:
    """The inputs of a structure generator at points of its flows, in the order in which it takes them."""

    noisy: list[Tensor]
    times: Tensor
    canvases: list[Tensor]
    codes: Tensor
    labels: Tensor
    stages: Tensor
    tables: list[Tensor]

    def rows(self, index: Tensor) -> FlowState:
        """Those of some images."""
        noisy, canvases, tables = ([one[index] for one in some] for some in (self.noisy, self.canvases, self.tables))
        return FlowState(noisy, self.times[index], canvases, self.codes[index], self.labels[index], self.stages, tables)

    def __iter__(self) -> Iterator[Any]:
        return (getattr(self, item.name) for item in dataclasses.fields(self))


def draw_steps(images: int, stages: int, flow_share: float, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Step sizes d and times t, (images, stages) each, and which images have d = 0, (images,): on the CPU.

    A share of the images, in random order, has d = 0 and t in [0, 1] at all stages; the others have d = 1 ... 1/16,
    each equally often but for chance, and t at the start of a step of that size. Each kind has at least one of two or
    more images.
    """
    flows = min(max(round(images * flow_share), 1), images - 1)
    flow = torch.randperm(images, generator=rng) < flows
    counts = torch.tensor(STEP_COUNTS, dtype=torch.float32)
    counts = counts[torch.randint(len(STEP_COUNTS), (images, stages), generator=rng)]
    position = torch.rand(images, stages, generator=rng)
    start = 1 - (position * counts).floor() / counts
    return torch.where(flow[:, None], 0.0, 1 / counts), torch.where(flow[:, None], position, start), flow
