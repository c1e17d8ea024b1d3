"""How a structure is sampled: the flow by any solver at any times, and bits decided in parallel rounds.

Each is a function that splits the clusters of a stage, which `Rival` puts in the place of the sampler's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from nvg.generator import Sampler, StructureGenerator
from nvg.generator.guidance import guided
from nvg.generator.halving import halving_preference
from nvg.generator.noise import FLOW, HALVING, draw, gumbel
from nvg.generator.schedules import ramp
from nvg.generator.state import SamplingState
from nvg.generator.structure import signed_bits
from nvg.granularity import split_codes, structure_map

NOISE = 3  # from here on: purposes of random draws that the sampler has not

Inputs = tuple[Tensor, Tensor, Tensor, Tensor]  # canvas x_i (N, L, e), labels (N,), stage (N,) to be made, codes (N, L)


class Rival(Sampler):
    """A sampler with another structure generator, which gives a preference for bit 1 or the codes themselves."""

    def __init__(self, teacher: Sampler, structure: StructureGenerator, split: Callable[..., Tensor]) -> None:
        """split: (structure, stage, inputs, guidance (N,), temperature (N,), seeds) -> codes (N, L) of `stage`."""
        super().__init__(teacher.tokenizer, teacher.content, structure, teacher.settings, teacher.class_names)
        self.split = split

    def _sample_structure(self, stage: int, state: SamplingState) -> Tensor:
        if stage == self.last_stage:  # nothing to choose
            return super()._sample_structure(stage, state)
        inputs = (state.canvas, state.labels, torch.full_like(state.labels, stage), state.codes)
        guidance = ramp(state.options.structure_guidance, stage - 1, self.last_stage)
        return self.split(self.structure, stage, inputs, guidance, state.options.structure_temperature, state.seeds)


# ---- the flow ----

SCHEDULES: dict[str, Callable[[Tensor], Tensor]] = {  # of u, from 1 down to 0 in equal steps, to t
    "uniform": lambda u: u,
    "shift 3": lambda u: 3 * u / (1 + 2 * u),  # short steps at the noise
    "shift 1/3": lambda u: u / (3 - 2 * u),  # short steps at the end
    "cosine": lambda u: (math.pi / 2 * u).sin(),
}


def flow_times(steps: int, schedule: str = "uniform") -> list[float]:
    """The times of a number of steps, from 1 to 0."""
    return SCHEDULES[schedule](torch.linspace(1.0, 0.0, steps + 1)).tolist()


def unknown_channels(stage: Tensor, last_stage: int) -> Tensor:
    """Which channels a flow makes at `stage` (N,): (N, 1, K) bool. The others are known and clean."""
    return torch.arange(last_stage, device=stage.device) >= stage[:, None, None] - 1


def velocity_of_rows(
    structure: StructureGenerator, z: Tensor, time: Tensor, inputs: Inputs, **few_step: Tensor
) -> Tensor:
    """The velocity at z (N, L, K) and time (N,) of rows of any stages, in a call for each stage; few_step: steps and
    guidance (N,)."""
    canvas, labels, stages, codes = inputs
    velocities = []
    for stage in stages.unique().tolist():
        rows = (stages == stage).nonzero()[:, 0]
        point = [z[rows]], time[rows, None], [canvas[rows]], codes[rows], labels[rows], stages.new_tensor([stage])
        told = {name: value[rows, None] for name, value in few_step.items()}
        velocities += structure(*point, [structure.rotary(codes[rows], stage)], **told)
    return torch.cat(velocities)[stages.argsort(stable=True).argsort()]


def velocity_of(structure: StructureGenerator, inputs: Inputs, guidance: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """The guided flow (z (N, L, K), t (N,)) -> (N, L, K): two passes, one where all of guidance (N,) is 1."""
    canvas, labels, stage, codes = inputs

    def velocity(labels: Tensor, z: Tensor, time: Tensor, canvas: Tensor, stage: Tensor, codes: Tensor) -> Tensor:
        return velocity_of_rows(structure, z, time, (canvas, labels, stage, codes)).float()

    no_class = structure.config.num_classes
    return lambda z, time: guided(velocity, labels, (z, time, canvas, stage, codes), guidance, no_class)


def integrate(
    velocity: Callable[[Tensor, Tensor], Tensor], noise: Tensor, inputs: Inputs, times: list[float], solver: str
) -> Tensor:
    """z(0) of z(1) = noise (N, L, K), known channels clean throughout. midpoint and heun take two velocities a step."""
    _, _, stage, codes = inputs
    unknown, clean = unknown_channels(stage, noise.shape[2]), signed_bits(codes, stage - 1)

    def slope(z: Tensor, time: float) -> Tensor:
        return velocity(z, torch.full((len(z),), time, device=z.device))

    def moved(z: Tensor, by: float, slope: Tensor) -> Tensor:
        return torch.where(unknown, z + by * slope, clean)

    z = torch.where(unknown, noise, clean)
    for now, then in pairwise(times):
        step, first = then - now, slope(z, now)
        if solver == "midpoint":
            first = slope(moved(z, step / 2, first), now + step / 2)
        elif solver == "heun":
            first = (first + slope(moved(z, step, first), then)) / 2
        z = moved(z, step, first)
    return z


def flow_split(
    structure: StructureGenerator,
    stage: int,
    inputs: Inputs,
    guidance: Tensor,
    temperature: Tensor,
    seeds: list[int],
    *,
    times: list[float],
    solver: str = "euler",
) -> Tensor:
    """As the sampler's own, by any solver and at any times: the same noise from the same seed."""
    codes = inputs[3]
    noise = draw(seeds, 0, FLOW, (codes.shape[1], structure.last_stage), torch.randn)
    z = integrate(velocity_of(structure, inputs, guidance), noise, inputs, times, solver)
    uniform = draw(seeds, stage, HALVING, (codes.shape[1],), torch.rand)
    parents = structure_map(codes, stage - 1)
    preference = halving_preference(z[..., stage - 1], parents, 2 ** (stage - 1), temperature, uniform)
    return split_codes(codes, stage, preference)


# ---- bit logits, decided in parallel rounds ----


def bit_logits(
    labels: Tensor, canvas: Tensor, stage: Tensor, codes: Tensor, decided: Tensor, *, network: StructureGenerator
) -> Tensor:
    """The logit of bit 1 at every position, (N, L, 1), of stage (N,); codes (N, L) hold that bit where decided (N, L).

    The flow's network, read otherwise: its input is the bits, -1 and +1, with 0 at what is unknown, its time the share
    that is undecided. The velocity there is 0 - E[b] = 1 - 2p, so -2 v is about the logit, to begin with.
    """
    channel = F.one_hot(stage - 1, network.last_stage)[:, None].bool()  # (N, 1, K)
    z = torch.where(channel & ~decided[..., None], 0.0, signed_bits(codes, stage))
    undecided = 1 - decided.float().mean(dim=1)
    velocity = velocity_of_rows(network, z, undecided, (canvas, labels, stage, codes)).float()
    return -2 * (velocity * channel).sum(dim=2, keepdim=True)


def bit_split(
    network: StructureGenerator,
    stage: int,
    inputs: Inputs,
    guidance: Tensor,
    temperature: Tensor,
    seeds: list[int],
    *,
    rounds: int,
) -> Tensor:
    """In each round halve all clusters by Gumbel-top-k on the logits, what was decided kept, and keep the surest part.

    After round r of R, L cos(pi r / 2 R) positions are undecided. How sure a position is: its logit in the direction
    that was drawn, with Gumbel noise that falls to 0. Any part of a halving can be completed to one.
    """
    canvas, labels, stages, codes = inputs
    positions = codes.shape[1]
    decided, current = torch.zeros_like(codes, dtype=torch.bool), codes
    logits_of = partial(bit_logits, network=network)
    for number in range(1, rounds + 1):
        logits = guided(logits_of, labels, (canvas, stages, current, decided), guidance, network.config.num_classes)[
            ..., 0
        ]
        purpose = HALVING if number == 1 else NOISE + 2 * number
        noise = temperature[:, None] * gumbel(draw(seeds, stage, purpose, (positions,), torch.rand))
        sign = 2.0 * ((current >> (network.last_stage - stage)) & 1) - 1
        current = split_codes(codes, stage, torch.where(decided, 1e6 * sign, logits + noise))
        sign = 2.0 * ((current >> (network.last_stage - stage)) & 1) - 1
        noise = temperature[:, None] * gumbel(draw(seeds, stage, NOISE + 2 * number + 1, (positions,), torch.rand))
        sure = torch.where(decided, torch.inf, sign * logits + (1 - number / rounds) * noise)
        kept = positions - math.floor(positions * math.cos(math.pi / 2 * number / rounds))
        decided = torch.zeros_like(decided).scatter(1, sure.topk(kept, dim=1).indices, True)
    return current
