"""Sampling: structure, content, canvas, stage by stage (docs/method.md, sampling).

For i = 0 ... K: structure (if 0 < i < K) -> content logits -> sample c_i -> x <- x + phi_i(assign(c_i, s_i)).

A sample is a function of (weights, class, seed, settings). Every random number comes from a generator of its own for
(seed, stage, purpose): batch mates do not matter, and giving a stage leaves the noise of the others as it was. The
flows of all stages share one noise an image, as they do in training.
"""

from __future__ import annotations

import dataclasses
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
from nvg.generator.compiled import cache_folder, compiled
from nvg.generator.content import ContentGenerator
from nvg.generator.controls import Given, one_each
from nvg.generator.guidance import guided
from nvg.generator.options import Options
from nvg.generator.seeds import image_seeds, whole_number
from nvg.generator.state import GivenRows, SamplingState
from nvg.generator.structure import STEP_COUNTS, StructureGenerator, signed_bits
from nvg.granularity import (
    GranularitySequence,
    assign,
    cluster_means,
    code_order,
    last_stage,
    split_codes,
    structure_map,
)


@dataclass(eq=False)
class Step:
    """N images after one stage: their codes, content and canvas so far."""

    stage: int
    sequence_codes: Tensor  # (N, L) int64; bits of stages up to `stage` are set
    content: list[Tensor]  # stages 0 ... stage, (N, 2^i) each
    canvas: Tensor  # x_{stage + 1}, (N, L, e)
    tokenizer: Autoencoder = field(repr=False)
    sizes: Sequence[int] = ()  # the batch sizes that the decoder is compiled for

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
        count = len(index)
        index = index + index[:1] * (filled_up(len(index), self.sizes) - len(index))
        return to_pixels(in_fours(self.tokenizer.decode_canvas, self.canvas[index]))[:count]

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
        *,
        knows_no_class: bool = True,
    ) -> None:
        """knows_no_class: whether the generators were trained on images without their class too, as guidance needs."""
        self.tokenizer = tokenizer.eval().requires_grad_(False)
        self.content = content.eval().requires_grad_(False)
        self.structure = structure.eval().requires_grad_(False)
        self.settings = settings
        self.class_names = list(class_names)
        self.knows_no_class = knows_no_class
        self.sizes: list[int] = []  # the batch sizes that are compiled
        self._compiled: dict[Callable[..., Any], Callable[..., Any]] = {}
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

    def compile(self, sizes: Sequence[int] = (1,), **options: Any) -> Sampler:
        """Compile all that is computed between random numbers and pixels, and draw a batch of each size, so that no
        later one waits; returns self. It takes minutes, and seconds where the code is in `cache_folder()` already.

        sizes: a batch is filled up to the next of these; a larger one is compiled on its first use. A function is
        compiled for each shape: that of a size, of clusters that of a stage too. options: of torch.compile, by default
        mode="reduce-overhead", which makes a CUDA graph of each.
        """
        cache_folder()
        if "backend" not in options:
            options = {"mode": "reduce-overhead"} | options
        content, structure = self.content, self.structure
        functions: list[Callable[..., Any]] = [content, content.rotary, content.logits, structure, structure.rotary]
        functions += [flow_start, euler_step, halve, pick, self.tokenizer.quantizer.increment]
        self._compiled = {function: compiled(function, **options) for function in functions}
        self.tokenizer.decoder.compile(dynamic=False, **options)
        self.sizes = sorted(sizes)
        self._first_logits.clear()
        for size in self.sizes:
            self.generate([index % len(self.class_names) for index in range(size)])
        return self

    def _run(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """function(...), by its compiled code where there is one."""
        return self._compiled.get(function, function)(*arguments, **named)

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
        index = int(label) if isinstance(label, str) else whole_number(label)  # 1.7 and True are no classes
        if index is None:
            raise ValueError(f"class {label!r} is neither a name nor a whole number")
        if not 0 <= index < len(self.class_names):
            raise ValueError(f"class {index} is none of 0 ... {len(self.class_names) - 1}")
        return index

    def check_guidance(self, name: str, scale: float) -> None:
        """Raises ValueError for a scale that a generator has not learned: with guidance folded in, or trained without
        it. name: of the setting, structure_guidance or content_guidance."""
        structure, content = self.structure.config, self.content.config
        folded, largest = {
            "structure_guidance": (structure.few_step, structure.max_guidance),
            "content_guidance": (content.guided, content.max_guidance),
        }[name]
        if folded and not 1 <= scale <= largest:
            raise ValueError(f"{name}={scale:g}: this model has learned guidance, of scales 1 ... {largest:g}")
        if not folded and not self.knows_no_class and scale != 1:
            raise ValueError(
                f"{name}={scale:g} must be 1: this model was trained without guidance (train.class_dropout=0)"
            )

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

        classes: N names or indices. seed: a number from 0 to 2^31 - 1 (image j then has seed + j), or one per image.
        given: stages that are not generated, for all images; or a list with one Given (of one image) or None per image.
        settings: fields of SamplerConfig that differ for this call, a number each or (all but flow_steps) a list with
        one per image. Raises ValueError for an unknown class or setting, a seed out of range, or a `given` of another
        size.
        """
        count, content = len(classes), list[Tensor]()
        state = self._start(classes, seed, given, settings)
        for stage in range(self.last_stage + 1):
            content.append(self._draw_stage(stage, state))
            # What a batch was filled up with is left out.
            drawn = [tokens[:count] for tokens in content]
            yield Step(stage, state.codes[:count], drawn, state.canvas[:count], self.tokenizer, self.sizes)

    def _draw_stage(self, stage: int, state: SamplingState) -> Tensor:
        """Draw one stage: its content tokens (N, 2^i). Nothing here waits for the device, or moves numbers to it."""
        if stage > 0:  # stage 0 is one cluster
            state.codes = state.fill(state.given_codes[stage], partial(self._sample_structure, stage))
            state.order = code_order(state.codes) if state.order is not None else None
        tokens = state.fill(state.given_tokens[stage], partial(self._sample_content, stage))
        increment = partial(self._run, self.tokenizer.quantizer.increment, stage)
        state.canvas = state.canvas + in_fours(increment, tokens, structure_map(state.codes, stage))
        return tokens

    def _start(
        self,
        classes: Sequence[str | int],
        seed: int | Sequence[int],
        given: Given | Sequence[Given | None] | None,
        settings: dict[str, Any],
    ) -> SamplingState:
        """The state of a call of `stages` before stage 0, from checked arguments, with all random numbers and all that
        is given on the device. Raises ValueError."""
        if isinstance(classes, str):  # else its letters would be the classes
            raise ValueError(f"classes={classes!r}: give a list of names or indices, such as [{classes!r}]")
        count, positions = len(classes), self.tokenizer.config.positions
        rows = filled_up(count, self.sizes)
        options = Options.of(self.settings, settings, count, rows, self.device)
        for name, scales in options.scales.items():
            for scale in scales:
                self.check_guidance(name, scale)
        index = [*range(count), *[0] * (rows - count)]  # of the images, filled up with the first one
        each = one_each(given, count, positions)
        labels, seeds = [self.class_index(name) for name in classes], image_seeds(seed, count)
        labels, seeds, each = [labels[j] for j in index], [seeds[j] for j in index], [each[j] for j in index]
        noise, halving, picking = draw_all(seeds, positions, self.device)
        # A few-step generator was taught equal steps.
        shift = torch.zeros_like(options.flow_shift) if self.structure.config.few_step else options.flow_shift
        codes = torch.zeros(rows, positions, dtype=torch.int64, device=self.device)
        state = SamplingState(
            torch.tensor(labels, device=self.device),
            labels,
            seeds,
            options,
            *self._given_rows(each),
            noise,
            halving,
            picking,
            times=flow_times(options.flow_steps, shift, positions),
            codes=codes,
            canvas=torch.zeros(rows, positions, self.tokenizer.config.code_width, device=self.device),
            order=code_order(codes) if self.content.of_clusters or self.structure.of_clusters else None,
        )
        self._learn_first_logits(state)
        return state

    def _given_rows(self, each: list[Given]) -> tuple[list[GivenRows | None], list[GivenRows | None]]:
        """Given codes and tokens of stages 0 ... K, of one Given an image."""
        stages, positions = range(self.last_stage + 1), self.tokenizer.config.positions
        if each and not any(one.structure_stages or one.content for one in each):
            return [None for _ in stages], [None for _ in stages]
        each = [one.to(self.device) for one in each]
        return (
            [GivenRows.of([one.codes_of(stage) for one in each], positions) for stage in stages],
            [GivenRows.of([one.tokens_of(stage) for one in each], 2**stage) for stage in stages],
        )

    # ---- structure ----

    def _sample_structure(self, stage: int, state: SamplingState) -> Tensor:
        """Codes of `stage` (N, L) from those of stage - 1: integrate the flow, read channel stage - 1, and halve each
        cluster by Gumbel-top-k."""
        codes = state.codes
        if stage == self.last_stage:  # pairs: the first of two gets bit 0, by convention, so nothing is left to choose
            return split_codes(codes, stage, torch.arange(codes.shape[1], device=self.device).float().expand_as(codes))
        flow_end, temperature = self._integrate(stage, state)[..., stage - 1], state.options.structure_temperature
        rename = self.tokenizer.config.child_order == "raster"
        return self._run(halve, stage, codes, flow_end, temperature, state.halving[stage], rename)

    def _integrate(self, stage: int, state: SamplingState) -> Tensor:
        """z(0) of the structure flow that makes `stage`, (N, L, K): Euler steps from t = 1 to t = 0."""
        labels, options, known = state.labels, state.options, stage - 1
        z = self._run(flow_start, state.codes, state.noise, known)
        guidance = ramp(options.structure_guidance, known, self.last_stage)
        stages = labels.new_full((1,), stage)
        table = self._run(self.structure.rotary, state.codes, stage, state.order)
        inputs = (state.canvas, state.codes, table, *state.known_order())  # the same in all steps

        def velocity(
            labels: Tensor,
            z: Tensor,
            time: Tensor,
            canvas: Tensor,
            codes: Tensor,
            table: Tensor,
            order: Tensor | None = None,
            **few_step: Tensor,
        ) -> Tensor:
            tensors = ([z], time[:, None], [canvas], codes, labels, stages, [table])
            (flow,) = self._run(self.structure, *tensors, order=order, **few_step)
            return flow

        step = {
            "steps": torch.full_like(guidance, step_size(options.flow_steps))[:, None],
            "guidance": guidance[:, None],
        }
        for time, next_time in pairwise(state.times):
            if self.structure.config.few_step:  # it has learned the guided flow, and its mean over a step
                flow = velocity(labels, z, time, *inputs, **step)
            elif one_pass(options.scales["structure_guidance"], known):
                flow = velocity(labels, z, time, *inputs)
            else:
                flow = guided(velocity, labels, (z, time, *inputs), guidance, self.no_class)
            z = self._run(euler_step, z, flow, next_time - time, known)
        return z

    # ---- content ----

    def _sample_content(self, stage: int, state: SamplingState) -> Tensor:
        """Content tokens c_i of `stage`, (N, 2^i)."""
        options = state.options
        if stage == 0:  # an empty canvas, no structure, scale 1: a function of the class alone
            logits = torch.stack([self._first_logits[label] for label in state.classes])
        else:
            logits = self._logits(stage, state, ramp(options.content_guidance, stage, self.last_stage))
        top_p = falling_top_p(options.top_p, stage, self.last_stage)
        return self._run(pick, logits, options.content_temperature, top_p, state.picking[stage])

    def _logits(self, stage: int, state: SamplingState, guidance: Tensor) -> Tensor:
        """Guided logits of c_i, (N, 2^i, V); guidance (N,)."""

        stages = state.labels.new_full((1,), stage)

        def network(
            labels: Tensor, canvas: Tensor, codes: Tensor, table: Tensor, order: Tensor | None = None, **inputs: Tensor
        ) -> Tensor:
            tensors = ([canvas], codes, labels, stages, [table])
            (difference,), _ = self._run(self.content, *tensors, order=order, **inputs)
            return self._run(self.content.logits, difference, codes, stage).float()

        table = self._run(self.content.rotary, state.codes, stage, state.order)
        inputs = (state.canvas, state.codes, table, *state.known_order())
        if self.content.config.guided:  # one pass: guidance is learned
            return network(state.labels, *inputs, guidance=guidance)
        if one_pass(state.options.scales["content_guidance"], stage):
            return network(state.labels, *inputs)
        return guided(network, state.labels, inputs, guidance, self.no_class)

    def _learn_first_logits(self, state: SamplingState) -> None:
        """Keep the logits of stage 0, (1, V), of the classes that had none: they are computed once a class."""
        new = [label for label in dict.fromkeys(state.classes) if label not in self._first_logits]
        if not new:
            return
        rows = filled_up(len(new), self.sizes)
        empty = dataclasses.replace(
            state,
            labels=torch.tensor(new + new[:1] * (rows - len(new)), device=self.device),
            codes=state.codes.new_zeros(rows, state.codes.shape[1]),
            canvas=state.canvas.new_zeros(rows, *state.canvas.shape[1:]),
            order=None if state.order is None else state.order[:1].expand(rows, -1),
        )
        logits = self._logits(0, empty, state.canvas.new_ones(rows))
        self._first_logits |= dict(zip(new, logits, strict=False))  # the rest is what it was filled up with


# ---- the pieces, as functions ----

FLOW, HALVING, CONTENT = 0, 1, 2  # purposes of a random draw


def draw(
    seeds: Sequence[int], stage: int, purpose: int, shape: Sequence[int], distribution: Callable[..., Tensor]
) -> Tensor:
    """Random numbers of N images, each from its own seed: (N, *shape) on the CPU, whatever the device.

    distribution: torch.rand or torch.randn.
    """
    result = torch.empty(len(seeds), *shape)
    for row, seed in zip(result, seeds, strict=True):
        rng = torch.Generator().manual_seed((seed * 1_000_003 + stage * 31 + purpose) % 2**63)
        row.copy_(distribution(tuple(shape), generator=rng))
    return result


def draw_all(
    seeds: Sequence[int], positions: int, device: torch.device
) -> tuple[Tensor, dict[int, Tensor], dict[int, Tensor]]:
    """All random numbers of N images, moved to the device in one copy: the flow's noise (N, L, K), and the uniform
    numbers by stage, (N, L) of the halvings 1 ... K - 1, (N, 2^i) of the content 0 ... K."""
    last = last_stage(positions)
    halvings, contents = range(1, last), range(last + 1)
    each = [draw(seeds, 0, FLOW, (positions, last), torch.randn)]
    each += [draw(seeds, stage, HALVING, (positions,), torch.rand) for stage in halvings]
    each += [draw(seeds, stage, CONTENT, (2**stage,), torch.rand) for stage in contents]
    together = torch.cat([one.flatten() for one in each])
    if device.type == "cuda":  # from pinned memory the copy goes on while the host does
        together = together.pin_memory()
    moved = together.to(device, non_blocking=True).split([one.numel() for one in each])
    noise, *uniform = (one.view(like.shape) for one, like in zip(moved, each, strict=True))
    return noise, dict(zip(halvings, uniform, strict=False)), dict(zip(contents, uniform[len(halvings) :], strict=True))


def filled_up(count: int, sizes: Sequence[int]) -> int:
    """The least of the sizes, in rising order, that `count` images fit in; their number where none is so large."""
    return next((size for size in sizes if size >= count > 0), count)


def one_pass(scales: Sequence[float], index: int) -> bool:
    """Whether guidance asks for nothing at this index of the ramp: all scales are 1 there."""
    return index == 0 or all(scale == 1.0 for scale in scales)


def flow_start(codes: Tensor, noise: Tensor, known: int) -> Tensor:
    """z(1), (N, L, K): the bits of stages 1 ... known of the codes (N, L), and of later ones the noise (N, L, K)."""
    return torch.cat((signed_bits(codes, known)[..., :known], noise[..., known:]), dim=-1)


def euler_step(z: Tensor, flow: Tensor, time: Tensor, known: int) -> Tensor:
    """z after a step of the flow, both (N, L, K), over a time (N,). Channels that are known stay clean."""
    moved = z[..., known:] + time[:, None, None] * flow[..., known:]
    return torch.cat((z[..., :known], moved), dim=-1)


def flow_times(steps: int, shift: Tensor, positions: int) -> Tensor:
    """The times of a number of Euler steps, (steps + 1, N) from 1 to 0; shift (N,) is sampler.flow_shift.

    t' = s t / (1 + (s - 1) t) of equally spaced t, s = exp(shift + 0.65 (L - 256) / 3840): above s = 1 the steps at
    the noise are short. shift = 0 leaves t as it is, whatever L.
    """
    equal = torch.linspace(1.0, 0.0, steps + 1, dtype=torch.float64, device=shift.device)[:, None]
    strength = torch.exp(shift.double() + 0.65 * (positions - 256) / 3840)
    return torch.where(shift == 0, equal, strength * equal / (1 + (strength - 1) * equal)).float()


def gumbel(uniform: Tensor) -> Tensor:
    """Standard Gumbel noise of uniform numbers, -log(-log(u))."""
    return -(-uniform.clamp(1e-9, 1 - 1e-7).log()).log()


def halving_preference(
    flow_end: Tensor, parents: Tensor, clusters: int, temperature: Tensor, uniform: Tensor
) -> Tensor:
    """How much each position prefers bit 1, (N, L): flow_end z (N, L), map of the parents (N, L) in [0, clusters).

    At temperature T > 0 it is log((clamp(z, -1, 1) + 1) / its sum over the parent + 1e-8) + T g, with Gumbel noise g of
    uniform (N, L); at T = 0 it is z. T is (N,).
    """
    weight = flow_end.clamp(-1.0, 1.0) + 1.0
    mean = assign(cluster_means(weight[..., None], parents, clusters), parents)[..., 0]  # of each position's parent
    share = weight / (mean * (parents.shape[1] // clusters)).clamp_min(1e-8)
    noisy = (share + 1e-8).log() + temperature[:, None] * gumbel(uniform)
    return torch.where(temperature[:, None] > 0, noisy, flow_end)


def halve(stage: int, codes: Tensor, flow_end: Tensor, temperature: Tensor, uniform: Tensor, rename: bool) -> Tensor:
    """The codes (N, L) of `stage` from those before it, by the preferences of `halving_preference`."""
    parents = structure_map(codes, stage - 1)
    preference = halving_preference(flow_end, parents, 2 ** (stage - 1), temperature, uniform)
    return split_codes(codes, stage, preference, rename=rename)


def step_size(flow_steps: int) -> float:
    """The size of a step as a few-step generator takes it: 1 / flow_steps where it has learned that size, else 0."""
    return 1 / flow_steps if flow_steps in STEP_COUNTS else 0.0


def ramp(final: Tensor, index: int, last_stage: int) -> Tensor:
    """Scales (N,) that rise linearly from 1 at index 0 to `final` (N,) at index K.

    The content of stage i has index i, and so has the structure of stage i + 1, which is made of the same canvas.
    """
    return 1.0 + (final - 1.0) * (index / last_stage)


def falling_top_p(final: Tensor, stage: int, last_stage: int) -> Tensor:
    """top-p of a stage (N,): `final` (N,), and at stage i (K - K^(i/K)) / (K - 1) of what it lacks to 1.

    So it falls from 1 at stage 0 to `final` at stage K, slowly first; with K = 1 it is `final` at once.
    """
    left = (last_stage - last_stage ** (stage / last_stage)) / (last_stage - 1) if last_stage > 1 else 0.0
    return final + (1.0 - final) * left


def pick(logits: Tensor, temperature: Tensor, top_p: Tensor, uniform: Tensor) -> Tensor:
    """Content tokens (N, T) of logits (N, T, V): temperature and top_p (N,), one uniform number a token, (N, T)."""
    return nucleus_sample(logits / temperature[:, None, None], top_p, uniform)


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
    """A convolutional function of N images, (N, ...) each, on a CPU in a batch filled up to a multiple of four.

    The CPU's convolutions of one and of three images run other kernels, whose sums round differently, and an image must
    not depend, to the last bit, on how many others are drawn with it.
    """
    count = tensors[0].shape[0]
    if tensors[0].device.type != "cpu":
        return function(*tensors)
    filled = (torch.cat((value, value[:1].expand(-count % 4, *value.shape[1:]))) for value in tensors)
    return function(*filled)[:count]


def to_pixels(images: Tensor) -> np.ndarray:
    """Float images in [-1, 1], (N, C, H, W), as uint8 (N, H, W, C)."""
    pixels = ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).cpu().numpy()
