"""Sampling: structure, content, canvas, stage by stage (docs/method.md, sampling).

For i = 0 ... K: structure (if 0 < i < K) -> content logits -> sample c_i -> x <- x + phi_i(assign(c_i, s_i)).

A sample is a function of (weights, class, seed, settings). Every random number comes from a generator of its own for
(seed, stage, purpose): batch mates do not matter, and giving a stage leaves the noise of the others as it was.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from nvg.autoencoder import Autoencoder
from nvg.config import SamplerConfig
from nvg.generator.content import ContentGenerator
from nvg.generator.controls import Given
from nvg.generator.structure import StructureGenerator
from nvg.granularity import GranularitySequence, codes_from_map, split_codes, structure_embedding, structure_map


@dataclass(eq=False)
class Step:
    """What is known after a stage, of N images."""

    stage: int
    sequence_codes: Tensor  # (N, L) int64; bits of stages up to `stage` are set
    content: list[Tensor]  # stages 0 ... stage, (N, 2^i) each
    canvas: Tensor  # x_{stage + 1}, (N, L, e)
    tokenizer: Autoencoder = field(repr=False)

    @property
    def structure_map(self) -> Tensor:
        """s_i as pictures: (N, h, w) int64 in [0, 2^stage)."""
        grid = self.tokenizer.config.grid
        return structure_map(self.sequence_codes, self.stage).unflatten(1, (grid, grid))

    @cached_property
    def preview(self) -> np.ndarray:
        """The canvas so far, decoded: uint8 (N, H, W, C). Costs one pass of the decoder, on first use."""
        with torch.inference_mode():
            return to_pixels(self.tokenizer.decode_canvas(self.canvas))

    @property
    def sequence(self) -> GranularitySequence:
        """The granularity sequence; complete after the last stage. Raises ValueError before."""
        if self.stage != self.tokenizer.config.last_stage:
            raise ValueError(f"the sequence is complete after stage {self.tokenizer.config.last_stage}")
        return GranularitySequence(self.sequence_codes, self.content)


class Sampler:
    """A tokenizer and two generators, ready to draw images. Not a module: weights are frozen."""

    def __init__(
        self,
        tokenizer: Autoencoder,
        content: ContentGenerator,
        structure: StructureGenerator,
        settings: SamplerConfig,
        class_names: Sequence[str],
    ) -> None:
        self.tokenizer = tokenizer.eval().requires_grad_(False)
        self.content = content.eval().requires_grad_(False)
        self.structure = structure.eval().requires_grad_(False)
        self.settings = settings
        self.class_names = list(class_names)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.tokenizer.quantizer.codebook.device

    @property
    def last_stage(self) -> int:
        """K."""
        return self.tokenizer.config.last_stage

    def to(self, device: str | torch.device) -> Sampler:
        """Move all weights; returns self."""
        for module in (self.tokenizer, self.content, self.structure):
            module.to(device)
        return self

    def class_index(self, label: str | int) -> int:
        """The index of a class name or index. Raises ValueError naming the classes for an unknown one."""
        if isinstance(label, str):
            if label in self.class_names:
                return self.class_names.index(label)
            if not label.lstrip("-").isdigit():
                known = ", ".join(self.class_names[:20]) + (", ..." if len(self.class_names) > 20 else "")
                raise ValueError(f"no class {label!r}; the classes are {known}")
        index = int(label)
        if not 0 <= index < len(self.class_names):
            raise ValueError(f"class {index} is none of 0 ... {len(self.class_names) - 1}")
        return index

    def generate(
        self, classes: Sequence[str | int], *, seed: int | Sequence[int] = 0, given: Given | None = None, **settings
    ) -> np.ndarray:
        """Draw one image a class: uint8 (N, H, W, C). Arguments as for `stages`."""
        *_, last = self.stages(classes, seed=seed, given=given, **settings)
        return last.preview

    @torch.inference_mode()
    def stages(
        self, classes: Sequence[str | int], *, seed: int | Sequence[int] = 0, given: Given | None = None, **settings
    ) -> Iterator[Step]:
        """Draw one image a class, and yield after each of the K + 1 stages.

        classes: names or indices, N of them. seed: a number (image j then has seed + j) or one a image. given: stages
        not to generate. settings: fields of SamplerConfig that differ for this call. Raises ValueError for an unknown
        class or setting, or a `given` of another size.
        """
        options = override(self.settings, settings)
        labels = torch.tensor([self.class_index(name) for name in classes], device=self.device)
        seeds = [seed + j for j in range(len(classes))] if isinstance(seed, int) else list(seed)
        if len(seeds) != len(classes):
            raise ValueError(f"{len(seeds)} seeds for {len(classes)} images")
        positions = self.tokenizer.config.positions
        if given is not None and tuple(given.codes.shape) not in ((1, positions), (len(classes), positions)):
            raise ValueError(
                f"the given structure has shape {tuple(given.codes.shape)}, {len(classes)} images of this model need "
                f"({len(classes)}, {positions}) or (1, {positions})"
            )
        quantizer, last = self.tokenizer.quantizer, self.last_stage
        given = given.to(self.device) if given is not None else None
        codes = torch.zeros(len(classes), positions, dtype=torch.int64, device=self.device)
        canvas = torch.zeros(len(classes), positions, self.tokenizer.config.code_width, device=self.device)
        content: list[Tensor] = []
        for stage in range(last + 1):
            if given is not None and 0 < stage <= given.structure_stages:
                codes = codes_from_map(structure_map(given.codes, stage), stage).expand_as(codes)
            elif 0 < stage < last:
                codes = self._split(stage, canvas, codes, labels, seeds, options)
            elif stage == last:  # pairs: the first of the two gets bit 0, by convention, so nothing is left to choose
                codes = split_codes(codes, stage, torch.arange(positions, device=self.device).float().expand_as(codes))
            if given is not None and stage < given.content_stages:
                tokens = given.content[stage].expand(len(classes), -1)
            else:
                tokens = self._sample_content(stage, canvas, codes, labels, seeds, options)
            canvas = canvas + quantizer.increment(stage, tokens, structure_map(codes, stage))
            content.append(tokens)
            yield Step(stage, codes, list(content), canvas, self.tokenizer)

    # ---- structure ----

    def _split(
        self, stage: int, canvas: Tensor, codes: Tensor, labels: Tensor, seeds: list[int], options: SamplerConfig
    ) -> Tensor:
        """Codes of `stage` from stage - 1's: integrate the flow, read channel stage - 1, halve by Gumbel-top-k."""
        known = stage - 1
        kept = 0 if self.structure.config.noise_known else known
        clean = structure_embedding(codes, known)  # (N, L, K)
        noise = draw(seeds, stage, FLOW, clean.shape[1:], torch.randn).to(self.device)
        z = torch.cat((clean[..., :kept], noise[..., kept:]), dim=-1)
        guidance = ramp(options.structure_guidance, stage - 1, self.last_stage - 2)
        times = torch.linspace(1.0, 0.0, options.flow_steps + 1).tolist()
        for now, then in zip(times[:-1], times[1:], strict=True):
            velocity = self._velocity(z, now, canvas, labels, stage, codes, guidance)
            z = torch.cat((clean[..., :kept], (z + (then - now) * velocity)[..., kept:]), dim=-1)
        gumbel = draw(seeds, stage, HALVING, (codes.shape[1],), gumbel_noise).to(self.device)
        preference = z[..., known] + options.structure_temperature * gumbel
        return split_codes(codes, stage, preference, rename=self.tokenizer.config.child_order == "raster")

    def _velocity(
        self, z: Tensor, time: float, canvas: Tensor, labels: Tensor, stage: int, codes: Tensor, guidance: float
    ) -> Tensor:
        """The guided velocity (N, L, K): u + guidance * (c - u), in one batch of 2N; one pass where guidance is 1."""

        def evaluate(z: Tensor, canvas: Tensor, labels: Tensor, codes: Tensor) -> Tensor:
            count = labels.shape[0]
            times = torch.full((count,), time, device=self.device)
            stages = torch.full((count,), stage, device=self.device)
            return self.structure(z, times, canvas, labels, stages, codes)

        if guidance == 1.0:
            return evaluate(z, canvas, labels, codes)
        nobody = torch.full_like(labels, self.structure.config.num_classes)
        both = evaluate(z.repeat(2, 1, 1), canvas.repeat(2, 1, 1), torch.cat((labels, nobody)), codes.repeat(2, 1))
        conditional, unconditional = both.chunk(2)
        return unconditional + guidance * (conditional - unconditional)

    # ---- content ----

    def _sample_content(
        self, stage: int, canvas: Tensor, codes: Tensor, labels: Tensor, seeds: list[int], options: SamplerConfig
    ) -> Tensor:
        """c_i, (N, 2^i)."""
        guidance = ramp(options.content_guidance, stage, self.last_stage)
        logits = self._content_logits(stage, canvas, codes, labels, guidance) / options.content_temperature
        # One uniform number a token, and the inverse of the cumulative distribution over the sorted codes.
        uniform = draw(seeds, stage, CONTENT, (2**stage,), torch.rand).to(self.device)
        return nucleus_sample(logits, options.top_p ** (stage / self.last_stage), uniform)

    def _content_logits(self, stage: int, canvas: Tensor, codes: Tensor, labels: Tensor, guidance: float) -> Tensor:
        """Guided logits (N, 2^i, V)."""

        def evaluate(canvas: Tensor, labels: Tensor, codes: Tensor) -> Tensor:
            stages = torch.full((labels.shape[0],), stage, device=self.device)
            estimate, _ = self.content(canvas, labels, stages, codes)
            return self.content.logits(estimate, canvas, structure_map(codes, stage), stage).float()

        if guidance == 1.0:
            return evaluate(canvas, labels, codes)
        nobody = torch.full_like(labels, self.content.config.num_classes)
        both = evaluate(canvas.repeat(2, 1, 1), torch.cat((labels, nobody)), codes.repeat(2, 1))
        conditional, unconditional = both.chunk(2)
        return unconditional + guidance * (conditional - unconditional)


# ---- the pieces, as functions ----

FLOW, HALVING, CONTENT = 0, 1, 2  # purposes of a random draw


def draw(seeds: Sequence[int], stage: int, purpose: int, shape: Sequence[int], distribution) -> Tensor:
    """Random numbers of N images, each from its own seed: (N, *shape) on the CPU, whatever the device.

    distribution: torch.rand, torch.randn or `gumbel_noise`.
    """
    rows = []
    for seed in seeds:
        generator = torch.Generator().manual_seed((seed * 1_000_003 + stage * 31 + purpose) % 2**63)
        rows.append(distribution(tuple(shape), generator=generator))
    return torch.stack(rows)


def gumbel_noise(shape: tuple[int, ...], *, generator: torch.Generator) -> Tensor:
    """Standard Gumbel noise: -log(-log(u))."""
    uniform = torch.rand(shape, generator=generator).clamp_(1e-9, 1 - 1e-7)
    return -(-uniform.log()).log()


def ramp(final: float, index: int, last: int) -> float:
    """A scale that rises linearly from 1 at index 0 to `final` at index `last`; `final` where there is one index."""
    return 1.0 + (final - 1.0) * (index / last if last > 0 else 1.0)


def nucleus_sample(logits: Tensor, top_p: float, uniform: Tensor) -> Tensor:
    """Sample from the smallest set of codes whose probability reaches top_p: (..., V), (...) -> (...)."""
    probabilities, order = logits.softmax(dim=-1).sort(dim=-1, descending=True, stable=True)
    cumulative = probabilities.cumsum(dim=-1)
    # A code is in the set when the mass before it is below top_p; the most likely one always is.
    inside = cumulative - probabilities < top_p
    mass = (probabilities * inside).sum(dim=-1, keepdim=True)
    choice = (cumulative < uniform[..., None] * mass).sum(dim=-1, keepdim=True)
    choice = torch.minimum(choice, inside.sum(dim=-1, keepdim=True) - 1)
    return order.gather(-1, choice)[..., 0]


def override(settings: SamplerConfig, changes: dict) -> SamplerConfig:
    """Settings with some fields changed. Raises ValueError naming an unknown field or an impossible value."""
    known = {item.name for item in dataclasses.fields(settings)}
    for name in changes:
        if name not in known:
            raise ValueError(f"no sampler setting {name!r}; there are {', '.join(sorted(known))}")
    result = dataclasses.replace(settings, **changes)
    if result.flow_steps < 1:
        raise ValueError(f"flow_steps={result.flow_steps} must be at least 1")
    if not 0 < result.top_p <= 1:
        raise ValueError(f"top_p={result.top_p} must be in (0, 1]")
    if result.content_temperature <= 0 or result.structure_temperature < 0:
        raise ValueError("content_temperature must be above 0, structure_temperature at least 0")
    return result


def to_pixels(images: Tensor) -> np.ndarray:
    """Float images in [-1, 1], (N, C, H, W), as uint8 (N, H, W, C)."""
    pixels = ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).cpu().numpy()
