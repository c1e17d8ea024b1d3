"""Sampling: structure, content, canvas, stage by stage (docs/method.md, sampling).

For i = 0 ... K: structure (if 0 < i < K) -> content logits -> sample c_i -> x <- x + phi_i(assign(c_i, s_i)).

A sample is a function of (weights, class, seed, settings). Every random number comes from a generator of its own for
(seed, stage, purpose): batch mates do not matter, and giving a stage leaves the noise of the others as it was. The
flows of all stages share one noise an image, as they do in training. Batch mates change no bit on a CPU (docs/method.md
says what is known of GPUs). Compiled, they change the rounding: kernels are chosen by the batch's size.
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
from nvg.generator.batches import filled_up, in_fours, to_pixels
from nvg.generator.compiled import cache_folder, compiled
from nvg.generator.content import ContentGenerator
from nvg.generator.controls import Given, one_each
from nvg.generator.graphs import Graphs, graphs_on
from nvg.generator.guidance import guided
from nvg.generator.halving import euler_step, flow_start, halve
from nvg.generator.noise import draw_all
from nvg.generator.nucleus import pick
from nvg.generator.options import Options
from nvg.generator.schedules import falling_top_p, flow_times, one_pass, ramp, step_size
from nvg.generator.seeds import image_seeds, whole_number
from nvg.generator.state import GivenRows, SamplingState
from nvg.generator.structure import StructureGenerator
from nvg.granularity import (
    GranularitySequence,
    code_order,
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
    decode: Callable[[Tensor], Tensor] = field(repr=False)  # canvases (n, L, e) -> images (n, C, H, W)
    sizes: Sequence[int] = ()  # the batch sizes that it is compiled for

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
        return to_pixels(in_fours(self.decode, self.canvas[index]))[:count]

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
        self._graphs: Graphs | None = None  # of whole stages, where it is compiled on a GPU
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
        self._graphs = None
        return self

    def compile(self, sizes: Sequence[int] = (1,), **options: Any) -> Sampler:
        """Compile all that is computed between random numbers and pixels, and draw a batch of each size, so that no
        later one waits; returns self. It takes minutes, and seconds where the code is in `cache_folder()` already.

        sizes: a batch is filled up to the next of these; a larger one is compiled on its first use. A function is
        compiled for each shape: that of a size, of clusters that of a stage too. On a GPU a stage is then one CUDA
        graph (`Graphs`): of batches with the sampler's own number of flow steps, and not of one in which the stage is
        given for an image. options: of torch.compile, but no mode that makes CUDA graphs of its own.

        For another size other kernels are chosen, which round otherwise: an image depends on its batch in that alone.
        """
        if options.get("mode") in ("reduce-overhead", "max-autotune"):
            raise ValueError(f"mode={options['mode']!r} makes CUDA graphs of its own: leave it out")
        cache_folder()
        content, structure = self.content, self.structure
        functions: list[Callable[..., Any]] = [content, content.rotary, content.logits, structure, structure.rotary]
        functions += [flow_start, euler_step, halve, pick, self.tokenizer.quantizer.increment]
        self._compiled = {function: compiled(function, **options) for function in functions}
        self.tokenizer.decoder.compile(dynamic=False, **options)
        self.sizes = sorted(sizes)
        self._graphs = graphs_on(self.device)
        for size in self.sizes:
            for scales in self._kinds_of_guidance():
                self._first_logits.clear()  # or the classes of the size before would be none that are new
                self.generate([index % len(self.class_names) for index in range(size)], **scales)
        return self

    def _kinds_of_guidance(self) -> list[dict[str, Any]]:
        """Settings that bring about all shapes of a batch: a network that takes two passes for guidance takes one where
        all scales are 1."""
        names = self._guided_by_two_passes()
        return [{}, *(dict.fromkeys(names, scale) for scale in (1.0, 2.0) if names)]

    def _guided_by_two_passes(self) -> list[str]:
        """The settings of guidance whose network takes a pass with the class and one without for it."""
        learned = {
            "structure_guidance": self.structure.config.few_step,
            "content_guidance": self.content.config.guided,
        }
        return [name for name, folded in learned.items() if self.knows_no_class and not folded]

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
            codes, canvas = state.codes[:count], state.canvas[:count]
            yield Step(stage, codes, drawn, canvas, self.tokenizer, self._decode, self.sizes)

    def _draw_stage(self, stage: int, state: SamplingState) -> Tensor:
        """Draw one stage: its content tokens (N, 2^i). Nothing here waits for the device, or moves numbers to it."""
        drawn = state.given_codes[stage] is None and state.given_tokens[stage] is None
        if self._graphs is None or not drawn or state.options.flow_steps != self.settings.flow_steps:
            result = self._stage(stage, state)
        else:
            place = {"structure_guidance": max(stage - 1, 0), "content_guidance": stage}  # on the ramp
            passes = (one_pass(state.options.scales[name], place[name]) for name in self._guided_by_two_passes())
            key = ("stage", stage, state.labels.shape[0], state.options.flow_steps, *passes)
            result = self._graphs.run(key, partial(self._stage, stage), state.of_stage(stage))
        state.codes, state.order, state.canvas, tokens = result
        return tokens

    def _stage(self, stage: int, state: SamplingState) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """The codes, their order, the canvas and the content tokens (N, 2^i) after a stage, of the state before it."""
        state = dataclasses.replace(state)
        if stage > 0:  # stage 0 is one cluster
            state.codes = state.fill(state.given_codes[stage], partial(self._sample_structure, stage))
            state.order = code_order(state.codes) if state.order is not None else None
        tokens = state.fill(state.given_tokens[stage], partial(self._sample_content, stage))
        increment = partial(self._run, self.tokenizer.quantizer.increment, stage)
        canvas = state.canvas + in_fours(increment, tokens, structure_map(state.codes, stage))
        return state.codes, state.order, canvas, tokens

    def _decode(self, canvas: Tensor) -> Tensor:
        """Images of canvases: (N, L, e) -> (N, C, H, W), not clamped."""
        if self._graphs is None:
            return self.tokenizer.decode_canvas(canvas)
        images: Tensor = self._graphs.run(("decoder", canvas.shape[0]), self.tokenizer.decode_canvas, canvas)
        return images

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
        state.first_logits = self._logits_of_stage_0(state)
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
            assert state.first_logits is not None
            logits = state.first_logits
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

    def _logits_of_stage_0(self, state: SamplingState) -> Tensor | None:
        """The logits of stage 0, (N, 1, V), None of no image. They are computed once a class."""
        new = [label for label in dict.fromkeys(state.classes) if label not in self._first_logits]
        if new:
            rows = filled_up(len(new), self.sizes)
            labels = torch.tensor(new + new[:1] * (rows - len(new)), device=self.device)
            order = None if state.order is None else state.order[:1].expand(rows, -1).contiguous()
            function = partial(self._logits_of_classes, state)
            if self._graphs is None:
                logits = function(labels, order)
            else:
                logits = self._graphs.run(("first logits", rows), function, labels, order)
            self._first_logits |= dict(zip(new, logits, strict=False))  # the rest is what it was filled up with
        return torch.stack([self._first_logits[label] for label in state.classes]) if state.classes else None

    def _logits_of_classes(self, state: SamplingState, labels: Tensor, order: Tensor | None) -> Tensor:
        """The logits of stage 0 of some classes: labels (M,), the order (M, L) of codes that are all 0."""
        rows = labels.shape[0]
        codes = state.codes.new_zeros(rows, state.codes.shape[1])
        canvas = state.canvas.new_zeros(rows, *state.canvas.shape[1:])
        empty = dataclasses.replace(state, labels=labels, codes=codes, canvas=canvas, order=order)
        return self._logits(0, empty, canvas.new_ones(rows))
