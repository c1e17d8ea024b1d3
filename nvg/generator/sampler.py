"""Sampling: structure, content, canvas, stage by stage (docs/method.md, sampling).

For i = 0 ... K: structure (if 0 < i < K) -> content logits -> sample c_i -> x <- x + phi_i(assign(c_i, s_i)).

A sample is a function of (weights, class, seed, settings). Every random number comes from a generator of its own for
(seed, stage, purpose): batch mates do not matter, and giving a stage leaves the noise of the others as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nvg.autoencoder import Autoencoder
from nvg.config import SamplerConfig
from nvg.generator.content import ContentGenerator
from nvg.generator.controls import Given, one_each
from nvg.generator.guidance import guided
from nvg.generator.options import Options
from nvg.generator.structure import STEP_COUNTS, StructureGenerator
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
        return self.images(list(range(self.canvas.shape[0])))

    @torch.inference_mode()
    def images(self, index: list[int]) -> np.ndarray:
        """`preview` of some images alone, n of them: uint8 (n, H, W, C). Costs one pass of the decoder, each time."""
        return to_pixels(in_fours(self.tokenizer.decode_canvas, self.canvas[index]))

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
        self._first_logits: dict[int, Tensor] = {}  # of stage 0 by class: (1, V) each

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.tokenizer.quantizer.codebook.device

    @property
    def last_stage(self) -> int:
        """K."""
        return self.tokenizer.config.last_stage

    @property
    def no_class(self) -> int:
        """The label of "no class"."""
        return self.content.config.num_classes

    def to(self, device: str | torch.device, *, dtype: torch.dtype | None = None) -> Sampler:
        """Move all weights; returns self. dtype: of the transformers' blocks from now on, torch.bfloat16 for half of
        the memory to read; canvas, logits and decoder stay float32."""
        for module in (self.tokenizer, self.content, self.structure):
            module.to(device)
        if dtype is not None:
            for backbone in (self.content.backbone, self.structure.backbone):
                for parameter in backbone.parameters():  # and not the buffers: frequencies need float32
                    parameter.data = parameter.data.to(dtype)
        self._first_logits.clear()
        return self

    def compile(self, **options: Any) -> Sampler:
        """torch.compile of both generators and the decoder; returns self. A shape, that is a batch size, is compiled
        on its first use: all stages have the same. options: of torch.compile; mode="reduce-overhead" makes CUDA graphs.
        """
        for module in (self.content, self.structure, self.tokenizer.decoder):
            module.compile(dynamic=False, **options)
        self._first_logits.clear()
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

    def check_guidance(self, name: str, scale: float) -> None:
        """Raises ValueError for a scale that a generator with guidance folded in has not learned. name: of the setting,
        structure_guidance or content_guidance."""
        structure, content = self.structure.config, self.content.config
        folded, largest = {
            "structure_guidance": (structure.few_step, structure.max_guidance),
            "content_guidance": (content.guided, content.max_guidance),
        }[name]
        if folded and not 1 <= scale <= largest:
            raise ValueError(f"{name}={scale:g}: this model has learned guidance, of scales 1 ... {largest:g}")

    def generate(
        self,
        classes: Sequence[str | int],
        *,
        seed: int | Sequence[int] = 0,
        given: Given | Sequence[Given | None] | None = None,
        **settings,
    ) -> np.ndarray:
        """Draw one image a class: uint8 (N, H, W, C). Arguments as for `stages`."""
        *_, last = self.stages(classes, seed=seed, given=given, **settings)
        return last.preview

    @torch.inference_mode()
    def stages(
        self,
        classes: Sequence[str | int],
        *,
        seed: int | Sequence[int] = 0,
        given: Given | Sequence[Given | None] | None = None,
        **settings,
    ) -> Iterator[Step]:
        """Draw one image a class, and yield after each of the K + 1 stages.

        classes: names or indices, N of them. seed: a number (image j then has seed + j) or one an image. given: stages
        not to generate, of all images, or a list with one (of one image, or None) an image. settings: fields of
        SamplerConfig that differ for this call, a number or (all but flow_steps) a list with one an image. Raises
        ValueError for an unknown class or setting, or a `given` of another size.
        """
        count = len(classes)
        options = Options.of(self.settings, settings, count, self.device)
        for name in ("structure_guidance", "content_guidance"):
            for scale in getattr(options, name).tolist():
                self.check_guidance(name, scale)
        labels = torch.tensor([self.class_index(name) for name in classes], device=self.device)
        seeds = [seed + j for j in range(count)] if isinstance(seed, int) else list(seed)
        if len(seeds) != count:
            raise ValueError(f"{len(seeds)} seeds for {count} images")
        positions = self.tokenizer.config.positions
        givens = [one.to(self.device) for one in one_each(given, count, positions)]
        quantizer, last = self.tokenizer.quantizer, self.last_stage
        codes = torch.zeros(count, positions, dtype=torch.int64, device=self.device)
        canvas = torch.zeros(count, positions, self.tokenizer.config.code_width, device=self.device)
        flat_content = torch.zeros(count, 2 * positions - 1, dtype=torch.int64, device=self.device)
        content = flat_content.split([2**stage for stage in range(last + 1)], dim=1)  # (N, 2^i) each

        def rows(index: list[int]) -> tuple[Tensor, Tensor, Tensor, list[int], Options]:
            """Some images alone: rows of a network do not depend on each other."""
            return canvas[index], codes[index], labels[index], [seeds[j] for j in index], options.rows(index)

        for stage in range(last + 1):
            if stage > 0:  # stage 0 is one cluster
                kept, free = divided(stage <= one.structure_stages for one in givens)
                for j in kept:
                    codes[j] = codes_from_map(structure_map(givens[j].codes, stage), stage)[0]
                if free:
                    codes[free] = self._sample_structure(stage, *rows(free))
            tokens = content[stage]
            kept, free = divided(stage < one.content_stages for one in givens)
            for j in kept:
                tokens[j] = givens[j].content[stage][0]
            if free:
                tokens[free] = self._sample_content(stage, *rows(free))
            canvas = canvas + in_fours(partial(quantizer.increment, stage), tokens, structure_map(codes, stage))
            yield Step(stage, codes.clone(), list(content[: stage + 1]), canvas, self.tokenizer)

    # ---- structure ----

    def _sample_structure(
        self, stage: int, canvas: Tensor, codes: Tensor, labels: Tensor, seeds: list[int], options: Options
    ) -> Tensor:
        """Codes of `stage` from stage - 1's: integrate the flow, read channel stage - 1, halve by Gumbel-top-k."""
        if stage == self.last_stage:  # pairs: the first of two gets bit 0, by convention, so nothing is left to choose
            return split_codes(codes, stage, torch.arange(codes.shape[1], device=self.device).float().expand_as(codes))
        known = stage - 1
        kept = 0 if self.structure.config.noise_known else known
        clean = structure_embedding(codes, known)  # (N, L, K)
        noise = draw(seeds, stage, FLOW, clean.shape[1:], torch.randn).to(self.device)
        z = torch.cat((clean[..., :kept], noise[..., kept:]), dim=-1)
        guidance = ramp(options.structure_guidance, stage - 1, self.last_stage - 2)

        table = self.structure.rotary(codes, torch.full_like(labels, stage))  # the same in all steps

        def velocity(labels: Tensor, z: Tensor, canvas: Tensor, table: Tensor, time: float, **inputs) -> Tensor:
            times = torch.full((labels.shape[0],), time, device=self.device)
            return self.structure(z, times, canvas, labels, torch.full_like(labels, stage), table, **inputs)

        times = torch.linspace(1.0, 0.0, options.flow_steps + 1).tolist()
        for now, then in zip(times[:-1], times[1:], strict=True):
            if self.structure.config.few_step:  # one pass: it has learned the guided flow, and its mean over a step
                size = torch.full_like(guidance, step_size(options.flow_steps))
                flow = velocity(labels, z, canvas, table, now, step=size, guidance=guidance)
            else:
                flow = guided(partial(velocity, time=now), labels, (z, canvas, table), guidance, self.no_class)
            z[..., kept:] += (then - now) * flow[..., kept:]  # known channels stay clean
        gumbel = draw(seeds, stage, HALVING, (codes.shape[1],), gumbel_noise).to(self.device)
        preference = z[..., known] + options.structure_temperature[:, None] * gumbel
        return split_codes(codes, stage, preference, rename=self.tokenizer.config.child_order == "raster")

    # ---- content ----

    def _sample_content(
        self, stage: int, canvas: Tensor, codes: Tensor, labels: Tensor, seeds: list[int], options: Options
    ) -> Tensor:
        """c_i, (N, 2^i)."""

        guidance = ramp(options.content_guidance, stage, self.last_stage)
        if stage == 0:  # an empty canvas, no structure, scale 1: a function of the class alone
            drawn_from = self._logits_of_classes(labels, canvas, codes)
        else:
            drawn_from = self._logits(stage, canvas, codes, labels, guidance)
        drawn_from = drawn_from / options.content_temperature[:, None, None]
        # One uniform number a token, and the inverse of the cumulative distribution over the sorted codes.
        uniform = draw(seeds, stage, CONTENT, (2**stage,), torch.rand).to(self.device)
        return nucleus_sample(drawn_from, options.top_p ** (stage / self.last_stage), uniform)

    def _logits(self, stage: int, canvas: Tensor, codes: Tensor, labels: Tensor, guidance: Tensor) -> Tensor:
        """Guided logits of c_i, (N, 2^i, V)."""

        def network(labels: Tensor, canvas: Tensor, codes: Tensor, table: Tensor, **inputs) -> Tensor:
            estimate, _ = self.content(canvas, labels, torch.full_like(labels, stage), table, **inputs)
            return self.content.logits(estimate, canvas, structure_map(codes, stage), stage).float()

        inputs = (canvas, codes, self.content.rotary(codes, torch.full_like(labels, stage)))
        if self.content.config.guided:  # one pass: guidance is learned
            return network(labels, *inputs, guidance=guidance)
        return guided(network, labels, inputs, guidance, self.no_class)

    def _logits_of_classes(self, labels: Tensor, canvas: Tensor, codes: Tensor) -> Tensor:
        """Logits of stage 0, (N, 1, V): computed once a class."""
        wanted = labels.tolist()
        new = [wanted.index(label) for label in dict.fromkeys(wanted) if label not in self._first_logits]
        if new:
            unguided = canvas.new_ones(len(new))
            for j, row in zip(new, self._logits(0, canvas[new], codes[new], labels[new], unguided), strict=True):
                self._first_logits[wanted[j]] = row
        return torch.stack([self._first_logits[label] for label in wanted])


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


def step_size(flow_steps: int) -> float:
    """What a few-step generator is told of a step's size: 1 / flow_steps where it has learned that, else 0."""
    return 1 / flow_steps if flow_steps in STEP_COUNTS else 0.0


def ramp(final: Tensor, index: int, last: int) -> Tensor:
    """Scales that rise linearly from 1 at index 0 to `final` (N,) at index `last`; `final` where there is one index."""
    return 1.0 + (final - 1.0) * (index / last if last > 0 else 1.0)


def nucleus_sample(logits: Tensor, top_p: Tensor, uniform: Tensor) -> Tensor:
    """Sample from the smallest set of codes whose probability reaches top_p: (N, T, V), (N,), (N, T) -> (N, T)."""
    probabilities, order = logits.softmax(dim=-1).sort(dim=-1, descending=True, stable=True)
    cumulative = probabilities.cumsum(dim=-1)
    # A code is in the set when the mass before it is below top_p; the most likely one always is.
    inside = cumulative - probabilities < top_p[:, None, None]
    mass = (probabilities * inside).sum(dim=-1, keepdim=True)
    choice = (cumulative < uniform[..., None] * mass).sum(dim=-1, keepdim=True)
    choice = torch.minimum(choice, inside.sum(dim=-1, keepdim=True) - 1)
    return order.gather(-1, choice)[..., 0]


def divided(which: Iterable[bool]) -> tuple[list[int], list[int]]:
    """The indices of what is true, and of what is not."""
    indices: tuple[list[int], list[int]] = ([], [])
    for index, true in enumerate(which):
        indices[not true].append(index)
    return indices


def in_fours(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """A convolutional function of N images, (N, ...) each, in a batch filled up to a multiple of four.

    Convolutions of one and of three images run other kernels, whose sums round differently, and an image must not
    depend, to the last bit, on how many others are drawn with it.
    """
    count = tensors[0].shape[0]
    filled = (torch.cat((value, value[:1].expand(-count % 4, *value.shape[1:]))) for value in tensors)
    return function(*filled)[:count]


def to_pixels(images: Tensor) -> np.ndarray:
    """Float images in [-1, 1], (N, C, H, W), as uint8 (N, H, W, C)."""
    pixels = ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).cpu().numpy()
