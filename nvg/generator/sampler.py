"""Sampling: structure, content, canvas, stage by stage (docs/method.md, sampling).

For i = 0 ... K: structure (if 0 < i < K) -> content logits -> sample c_i -> x <- x + phi_i(assign(c_i, s_i)).

A sample is a function of (weights, class, seed, settings). Every random number comes from a generator of its own for
(seed, stage, purpose): batch mates do not matter, and giving a stage leaves the noise of the others as it was.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import pairwise
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
from nvg.generator.state import SamplingState
from nvg.generator.structure import STEP_COUNTS, StructureGenerator
from nvg.granularity import GranularitySequence, split_codes, structure_embedding, structure_map


@dataclass(eq=False)
class Step:
    """N images after one stage: their codes, content and canvas so far."""

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
        """The previews of n of the images: uint8 (n, H, W, C). Costs one pass of the decoder, each time."""
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
        self._first_logits: dict[int, Tensor] = {}  # class -> logits of stage 0, (1, V)

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.tokenizer.quantizer.codebook.device

    @property
    def last_stage(self) -> int:
        """The last stage's number, K. Stages are 0 ... K."""
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
        """The index of a class: a number is an index, a text a name and, where no class has that name, an index.

        Raises ValueError naming the classes for an unknown one, and their indices for a name that several have.
        """
        if isinstance(label, str):
            same = [index for index, name in enumerate(self.class_names) if name == label]
            if len(same) > 1:
                raise ValueError(f"{len(same)} classes are called {label!r}: give an index, {same[0]} or {same[1]}")
            if same:
                return same[0]
            if not (label.removeprefix("-").isascii() and label.removeprefix("-").isdigit()):
                known = ", ".join(self.class_names[:20]) + (", ..." if len(self.class_names) > 20 else "")
                raise ValueError(f"no class {label!r}; the classes are {known}")
        try:
            index = int(label) if isinstance(label, str) else operator.index(label)  # 1.7 is no class
        except TypeError:
            raise ValueError(f"class {label!r} is neither a name nor a whole number") from None
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
        **settings: Any,
    ) -> np.ndarray:
        """Draw one image per class: uint8 (N, H, W, C). The arguments are those of `stages`."""
        *_, last = self.stages(classes, seed=seed, given=given, **settings)
        return last.preview

    @torch.inference_mode()
    def stages(
        self,
        classes: Sequence[str | int],
        *,
        seed: int | Sequence[int] = 0,
        given: Given | Sequence[Given | None] | None = None,
        **settings: Any,
    ) -> Iterator[Step]:
        """Draw one image per class, and yield after each of the K + 1 stages.

        classes: N names or indices. seed: a number (image j then has seed + j), or one per image. given: stages that
        are not generated, for all images; or a list with one Given (of one image) or None per image. settings: fields
        of SamplerConfig that differ for this call, a number each or (all but flow_steps) a list with one per image.
        Raises ValueError for an unknown class or setting, or a `given` of another size.
        """
        state, positions = self._start(classes, seed, given, settings), self.tokenizer.config.positions
        content: list[Tensor] = []
        for stage in range(self.last_stage + 1):
            if stage > 0:  # stage 0 is one cluster
                given_codes = [one.codes_of(stage) for one in state.given]
                state.codes = state.fill(given_codes, positions, partial(self._sample_structure, stage))
            given_tokens = [one.tokens_of(stage) for one in state.given]
            content.append(state.fill(given_tokens, 2**stage, partial(self._sample_content, stage)))
            increment = partial(self.tokenizer.quantizer.increment, stage)
            state.canvas = state.canvas + in_fours(increment, content[stage], structure_map(state.codes, stage))
            yield Step(stage, state.codes, list(content), state.canvas, self.tokenizer)

    def _start(
        self,
        classes: Sequence[str | int],
        seed: int | Sequence[int],
        given: Given | Sequence[Given | None] | None,
        settings: dict[str, Any],
    ) -> SamplingState:
        """The state of a call of `stages` before stage 0, from checked arguments. Raises ValueError."""
        count, positions = len(classes), self.tokenizer.config.positions
        options = Options.of(self.settings, settings, count, self.device)
        for name in ("structure_guidance", "content_guidance"):
            for scale in getattr(options, name).tolist():
                self.check_guidance(name, scale)
        labels = [self.class_index(name) for name in classes]
        seeds = [seed + j for j in range(count)] if isinstance(seed, int) else list(seed)
        if len(seeds) != count:
            raise ValueError(f"{len(seeds)} seeds for {count} images")
        return SamplingState(
            torch.tensor(labels, device=self.device),
            seeds,
            options,
            [one.to(self.device) for one in one_each(given, count, positions)],
            codes=torch.zeros(count, positions, dtype=torch.int64, device=self.device),
            canvas=torch.zeros(count, positions, self.tokenizer.config.code_width, device=self.device),
        )

    # ---- structure ----

    def _sample_structure(self, stage: int, state: SamplingState) -> Tensor:
        """Codes of `stage` (N, L) from those of stage - 1: integrate the flow, read channel stage - 1, and halve each
        cluster by Gumbel-top-k."""
        codes, options, known = state.codes, state.options, stage - 1
        if stage == self.last_stage:  # pairs: the first of two gets bit 0, by convention, so nothing is left to choose
            return split_codes(codes, stage, torch.arange(codes.shape[1], device=self.device).float().expand_as(codes))
        clean = structure_embedding(codes, known)  # (N, L, K)
        noise = draw(state.seeds, stage, FLOW, clean.shape[1:], torch.randn).to(self.device)
        z = self._integrate(stage, state, clean, noise)
        gumbel = draw(state.seeds, stage, HALVING, (codes.shape[1],), gumbel_noise).to(self.device)
        preference = z[..., known] + options.structure_temperature[:, None] * gumbel
        return split_codes(codes, stage, preference, rename=self.tokenizer.config.child_order == "raster")

    def _integrate(self, stage: int, state: SamplingState, clean: Tensor, noise: Tensor) -> Tensor:
        """z(0) of the structure flow, (N, L, K), from the clean embedding and the noise (N, L, K): Euler steps from
        t = 1 to t = 0."""
        labels, flow_steps = state.labels, state.options.flow_steps
        kept = 0 if self.structure.config.noise_known else stage - 1
        z = torch.cat((clean[..., :kept], noise[..., kept:]), dim=-1)
        guidance = ramp(state.options.structure_guidance, stage - 1, self.last_stage - 2)
        table = self.structure.rotary(state.codes, torch.full_like(labels, stage))  # the same in all steps

        def velocity(labels: Tensor, z: Tensor, canvas: Tensor, table: Tensor, time: float, **inputs: Tensor) -> Tensor:
            times = torch.full((labels.shape[0],), time, device=self.device)
            return self.structure(z, times, canvas, labels, torch.full_like(labels, stage), table, **inputs)

        for time, next_time in pairwise(torch.linspace(1.0, 0.0, flow_steps + 1).tolist()):
            if self.structure.config.few_step:  # one pass: it has learned the guided flow, and its mean over a step
                size = torch.full_like(guidance, step_size(flow_steps))
                flow = velocity(labels, z, state.canvas, table, time, step=size, guidance=guidance)
            else:
                network = partial(velocity, time=time)
                flow = guided(network, labels, (z, state.canvas, table), guidance, self.no_class)
            z[..., kept:] += (next_time - time) * flow[..., kept:]  # known channels stay clean
        return z

    # ---- content ----

    def _sample_content(self, stage: int, state: SamplingState) -> Tensor:
        """Content tokens c_i of `stage`, (N, 2^i)."""
        options = state.options
        if stage == 0:  # an empty canvas, no structure, scale 1: a function of the class alone
            logits = self._logits_of_classes(state)
        else:
            logits = self._logits(stage, state, ramp(options.content_guidance, stage, self.last_stage))
        logits = logits / options.content_temperature[:, None, None]
        # One uniform number per token, and the inverse of the cumulative distribution over the sorted entries.
        uniform = draw(state.seeds, stage, CONTENT, (2**stage,), torch.rand).to(self.device)
        return nucleus_sample(logits, options.top_p ** (stage / self.last_stage), uniform)

    def _logits(self, stage: int, state: SamplingState, guidance: Tensor) -> Tensor:
        """Guided logits of c_i, (N, 2^i, V); guidance (N,)."""

        def network(labels: Tensor, canvas: Tensor, codes: Tensor, table: Tensor, **inputs: Tensor) -> Tensor:
            estimate, _ = self.content(canvas, labels, torch.full_like(labels, stage), table, **inputs)
            return self.content.logits(estimate, canvas, structure_map(codes, stage), stage).float()

        table = self.content.rotary(state.codes, torch.full_like(state.labels, stage))
        inputs = (state.canvas, state.codes, table)
        if self.content.config.guided:  # one pass: guidance is learned
            return network(state.labels, *inputs, guidance=guidance)
        return guided(network, state.labels, inputs, guidance, self.no_class)

    def _logits_of_classes(self, state: SamplingState) -> Tensor:
        """Logits of stage 0, (N, 1, V): computed once per class."""
        labels = state.labels.tolist()
        missing = [labels.index(label) for label in dict.fromkeys(labels) if label not in self._first_logits]
        if missing:
            logits = self._logits(0, state.rows(missing), state.canvas.new_ones(len(missing)))
            for j, row in zip(missing, logits, strict=True):
                self._first_logits[labels[j]] = row
        return torch.stack([self._first_logits[label] for label in labels])


# ---- the pieces, as functions ----

FLOW, HALVING, CONTENT = 0, 1, 2  # purposes of a random draw


def draw(
    seeds: Sequence[int], stage: int, purpose: int, shape: Sequence[int], distribution: Callable[..., Tensor]
) -> Tensor:
    """Random numbers of N images, each from its own seed: (N, *shape) on the CPU, whatever the device.

    distribution: torch.rand, torch.randn or `gumbel_noise`.
    """
    rows = []
    for seed in seeds:
        rng = torch.Generator().manual_seed((seed * 1_000_003 + stage * 31 + purpose) % 2**63)
        rows.append(distribution(tuple(shape), generator=rng))
    return torch.stack(rows)


def gumbel_noise(shape: tuple[int, ...], *, generator: torch.Generator) -> Tensor:
    """Standard Gumbel noise, -log(-log(u)). The random generator's keyword is that of torch.rand."""
    uniform = torch.rand(shape, generator=generator).clamp_(1e-9, 1 - 1e-7)
    return -(-uniform.log()).log()


def step_size(flow_steps: int) -> float:
    """The size of a step as a few-step generator takes it: 1 / flow_steps where it has learned that size, else 0."""
    return 1 / flow_steps if flow_steps in STEP_COUNTS else 0.0


def ramp(final: Tensor, index: int, last: int) -> Tensor:
    """Scales that rise linearly from 1 at index 0 to `final` (N,) at index `last`; `final` where there is one index."""
    return 1.0 + (final - 1.0) * (index / last if last > 0 else 1.0)


def nucleus_sample(logits: Tensor, top_p: Tensor, uniform: Tensor) -> Tensor:
    """Sample from the smallest set of entries whose probability reaches top_p: (N, T, V), (N,), (N, T) -> (N, T)."""
    probabilities, order = logits.softmax(dim=-1).sort(dim=-1, descending=True, stable=True)
    cumulative = probabilities.cumsum(dim=-1)
    # An entry is in the set when the mass before it is below top_p; the most likely one always is.
    inside = cumulative - probabilities < top_p[:, None, None]
    mass = (probabilities * inside).sum(dim=-1, keepdim=True)
    choice = (cumulative < uniform[..., None] * mass).sum(dim=-1, keepdim=True)
    choice = torch.minimum(choice, inside.sum(dim=-1, keepdim=True) - 1)
    return order.gather(-1, choice)[..., 0]


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
