"""The loss of each rival: a module with the student in it, called as loss(image, inputs, rng).

image (N,) are the numbers of the training images, inputs are `samplers.Inputs` of N rows. Networks that are not
trained stand in tuples, so that they are no part of a module's state.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from experiments.few_step_rivals.data import Tokens
from experiments.few_step_rivals.samplers import (
    Inputs,
    bit_logits,
    flow_times,
    integrate,
    unknown_channels,
    velocity_of,
    velocity_of_rows,
)
from nvg.config import DistillConfig
from nvg.generator import Sampler, StructureGenerator
from nvg.generator.schedules import ramp
from nvg.generator.structure import signed_bits
from nvg.training.few_step_loss import FewStep

MAX_GUIDANCE = 3.0  # of shortcut and meanflow: the guidance scales that are learned
CLASS_DROPOUT = 0.1  # of bits, for guidance
PAIR_BATCH = 50


def masked_mean(values: Tensor, unknown: Tensor) -> Tensor:
    """The mean of values (N, L, K) over unknown channels (N, 1, K): (N,)."""
    return (values * unknown).sum(dim=(1, 2)) / (unknown.sum(dim=(1, 2)) * values.shape[1])


class Shortcut(nn.Module):
    """The loss of pipelines/distill.py."""

    def __init__(self, student: StructureGenerator, average: StructureGenerator, teacher: StructureGenerator) -> None:
        super().__init__()
        self.student = student
        self.frozen = (FewStep(student, average, teacher, DistillConfig()),)

    def forward(self, image: Tensor, inputs: Inputs, rng: torch.Generator) -> Tensor:
        canvas, labels, stage, codes = inputs
        stages = stage.unique().tolist()  # all of each image, stage by stage
        images = len(stage) // len(stages)
        canvases = dict(zip(stages, canvas.chunk(len(stages)), strict=True))
        return self.frozen[0](canvases, labels[:images], codes[:images], stages, rng)[0]


class Bits(nn.Module):
    """Binary cross-entropy of the bits that a random subset leaves undecided (after Chang et al., MaskGIT, 2202.04200).

    The undecided share is cos(pi u / 2) with u uniform, as there: all 16 positions in 23% of the rows.
    """

    def __init__(self, student: StructureGenerator) -> None:
        super().__init__()
        self.student = student

    def forward(self, image: Tensor, inputs: Inputs, rng: torch.Generator) -> Tensor:
        canvas, labels, stage, codes = inputs
        rows, positions = codes.shape
        dropped = torch.rand(rows, generator=rng) < CLASS_DROPOUT
        labels = torch.where(dropped, self.student.config.num_classes, labels)
        undecided = (positions * (math.pi / 2 * torch.rand(rows, 1, generator=rng)).cos()).ceil()
        decided = torch.rand(rows, positions, generator=rng).argsort(dim=1) >= undecided
        logits = bit_logits(labels, canvas, stage, codes, decided, network=self.student)[..., 0]
        bits = (codes >> (self.student.last_stage - stage[:, None])) & 1
        error = F.binary_cross_entropy_with_logits(logits, bits.float(), reduction="none")
        return error[~decided].mean()


class Reflow(nn.Module):
    """|v - (eps - z0)|^2 on pairs of a noise and what the teacher makes of it, guided (Liu et al., 2209.03003)."""

    def __init__(self, student: StructureGenerator, noise: Tensor, made: Tensor) -> None:
        """noise and made z(0): (images, K - 1, L, K), of the stages 1 ... K - 1 of the first training images."""
        super().__init__()
        self.student = student
        self.pairs = (noise, made)
        self.images = len(noise)

    def forward(self, image: Tensor, inputs: Inputs, rng: torch.Generator) -> Tensor:
        stage = inputs[2]
        noise, made = (some[image, stage - 1] for some in self.pairs)
        time = torch.rand(len(stage), generator=rng)
        z = made + time[:, None, None] * (noise - made)  # known channels: the same in both
        velocity = velocity_of_rows(self.student, z, time, inputs)
        return masked_mean((velocity - (noise - made)).square(), unknown_channels(stage, z.shape[2])).mean()


@torch.no_grad()
def reflow_pairs(teacher: Sampler, tokens: Tokens, images: int, steps: int) -> tuple[Tensor, Tensor]:
    """Noise, with known channels clean, and z(0) of the first images: (images, K - 1, L, K) each."""
    rng = torch.Generator().manual_seed(1)
    last = teacher.last_stage
    noises, results = [], []
    for first in range(0, images, PAIR_BATCH):
        image = torch.arange(first, min(first + PAIR_BATCH, images))
        both = []
        for stage in range(1, last):  # the first stage's guidance is 1: one pass
            inputs = tokens.inputs(image, torch.full_like(image, stage))
            noise = torch.randn(len(image), inputs[3].shape[1], last, generator=rng)
            noise = torch.where(unknown_channels(inputs[2], last), noise, signed_bits(inputs[3], stage - 1))
            scale = ramp(torch.full((len(image),), teacher.settings.structure_guidance), stage - 1, last)
            velocity = velocity_of(teacher.structure, inputs, scale)
            both.append((noise, integrate(velocity, noise, inputs, flow_times(steps), "euler")))
        noises.append(torch.stack([noise for noise, _ in both], dim=1))
        results.append(torch.stack([made for _, made in both], dim=1))
    return torch.cat(noises), torch.cat(results)


class MeanFlow(nn.Module):
    """|u - (v - d du/dt)|^2 with the teacher's guided v (Geng et al., 2505.13447).

    u(z, t, d, w) is the mean velocity over [t - d, t]: d u = the integral of v, whose derivative by t along the flow,
    at a fixed t - d, is u + d du/dt = v. Half of the rows have d = 0. Rows are weighted by 1 / (error + c), as there.
    """

    def __init__(self, student: StructureGenerator, teacher: StructureGenerator) -> None:
        super().__init__()
        self.student = student
        self.frozen = (teacher,)

    def forward(self, image: Tensor, inputs: Inputs, rng: torch.Generator) -> Tensor:
        _, _, stage, codes = inputs
        rows, last = len(stage), self.student.last_stage
        unknown, complete = unknown_channels(stage, last), signed_bits(codes, last)
        noise = torch.randn(complete.shape, generator=rng)
        guidance = 1 + (MAX_GUIDANCE - 1) * torch.rand(rows, generator=rng)
        begin, time = torch.rand(rows, 2, generator=rng).sort(dim=1).values.unbind(1)
        size = torch.where(torch.arange(rows) % 2 == 0, time - begin, 0.0)
        z = torch.where(unknown, complete + time[:, None, None] * (noise - complete), complete)
        with torch.no_grad():
            flow = velocity_of(self.frozen[0], inputs, guidance)(z, time)
        # One forward-mode pass gives u and du/dt: of the tangents, z moves along the flow, t and d at rate 1.
        with forward_ad.dual_level(), sdpa_kernel(SDPBackend.MATH):  # the fused attention has no forward derivative
            moving = (
                forward_ad.make_dual(z, torch.where(unknown, flow, 0.0)),
                forward_ad.make_dual(time, torch.ones_like(time)),
                forward_ad.make_dual(size, torch.ones_like(size)),
            )
            told = {"steps": moving[2], "guidance": guidance}
            output = velocity_of_rows(self.student, moving[0], moving[1], inputs, **told)
            mean, derivative = forward_ad.unpack_dual(output)
        target = flow - size[:, None, None] * derivative.detach()
        error = masked_mean((mean - target).square(), unknown)
        return (error / (error.detach() + 1e-3)).mean()
