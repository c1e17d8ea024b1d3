"""Kernels of one picture drawn by a compiled sampler: counted in the code that torch.compile writes, on any machine.

    python -m benchmarks.kernels [--form clusters] [--images 1] [--depths 4 6]

The schedule is "guided" of `benchmarks/schedules.py`: one pass a stage of both generators, one flow step. Inductor
writes each function's code, for a CPU, and the calls in it are counted: kernels that it generates (loops over elements
and reductions, fused), and library calls (matrix products, attention, convolutions). What runs outside of compiled
functions is counted as operations that make numbers. Nothing is translated: the functions then run as they were.
The host starts a stage, or the decoder, as one CUDA graph, and copies into and out of it (nvg/generator/graphs.py).
"Before and after" is what runs on the device before the first stage and from the decoder's output to pixels, traced on
the meta device.
All blocks of a network are alike, so two small depths, of several heads each, give the count of d16; stages 1 ... 7
are alike, so stage 4 stands for them. For CUDA inductor fuses by other rules of thumb, and nothing is filled up to four
rows or images there: the count is near, not equal. Blocks in float32, a class whose first logits are known.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from benchmarks.schedules import FORMS, build, configured
from benchmarks.tracing import Numbers
from nvg.generator import Sampler
from nvg.generator.graphs import Graphs
from nvg.generator.state import SamplingState
from nvg.granularity import codes_from_map, structure_map

LAUNCH = re.compile(r"^\s+(?:[\w, ]+ = )?(cpp_fused_\w+|extern_kernels\.\w+|torch\.ops\.[\w.]+)\(", re.MULTILINE)
MIDDLE, LAST = 4, 8  # stages
KINDS = ("generated", "library", "outside", "copies")
AROUND = "before and after"
VIEWS = ("as_strided", "alias", "reshape")  # calls of the written code that make no numbers


class Written(Exception):  # noqa: N818 (no error: the code is there, and is not wanted otherwise)
    """Carries the code that inductor has written for a graph."""


class Kernels:
    """A backend of torch.compile that counts what each run of a graph would launch."""

    def __init__(self) -> None:
        self.launched: Counter[str] = Counter()

    def __call__(self, module: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        counts = Counter(kind_of(call) for call in launches(module, inputs))

        def run(*arguments: Any) -> Any:
            self.launched.update(counts)
            return module.forward(*arguments)

        return run


class Outside(Numbers):
    """Counts operations that make numbers, those of the functions in `inside` left out."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.counts = True

    def inside(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, its operations not counted."""

        def run(*arguments: Any, **named: Any) -> Any:
            self.counts = False
            result = function(*arguments, **named)
            self.counts = True
            return result

        return run

    def see(self, operation: str, tensors: list[Tensor]) -> None:
        self.count += self.counts


class OnDevice(Outside):
    """Counts those with a tensor that is not on the CPU."""

    def see(self, operation: str, tensors: list[Tensor]) -> None:
        self.count += any(one.device.type != "cpu" for one in tensors)


class OnlyCopies(Graphs):
    """Graphs whose replay computes nothing: the copies around it are left."""

    def record(self, function: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        return function(), lambda: None


def launches(module: torch.fx.GraphModule, inputs: list[Any]) -> list[str]:
    """The calls in the code that inductor writes for a graph."""
    from torch._inductor.compile_fx import compile_fx  # seconds, which --help need not wait for
    from torch._inductor.graph import GraphLowering

    codegen = GraphLowering.codegen

    def written(graph: GraphLowering) -> None:
        raise Written(codegen(graph)[0].value)

    options = {"fx_graph_cache": False, "cpp_wrapper": False}
    with (
        mock.patch.object(GraphLowering, "codegen", written),
        torch._inductor.config.patch(options),
        torch._functorch.config.patch(enable_autograd_cache=False),
    ):
        try:
            compile_fx(module, inputs)
        except Exception as error:  # torch wraps what a backend raises
            code = next((one for one in causes(error) if isinstance(one, Written)), None)
            if code is None:
                raise
            body = str(code.args[0]).split("def call(", 1)[-1]
            return [call for call in LAUNCH.findall(body) if not any(view in call for view in VIEWS)]
    return []  # nothing to compute


def causes(error: BaseException | None) -> list[BaseException]:
    """An error and what it came from."""
    return [] if error is None else [error, *causes(error.__cause__ or error.__context__)]


def kind_of(call: str) -> str:
    """The column that a call belongs to."""
    return "generated" if call.startswith("cpp_fused") else "library"


def count(depth: int, images: int, stages: Sequence[int], form: str = "positions") -> list[Counter[str]]:
    """The launches of some stages by a sampler of this depth and form, and then those of the decoder."""
    torch._dynamo.reset()
    overrides = (f"content.depth={depth}", f"structure.depth={depth}", "tokenizer.widths=[32,32,32,32,32]")
    sampler: Sampler = build(configured("d16", *overrides, form=form), "guided")
    kernels = Kernels()
    sampler.compile((), backend=kernels)
    state = sampler._start(list(range(images)), 0, None, {})  # from here on the first logits are known
    positions = torch.arange(state.codes.shape[1]).expand_as(state.codes)

    def begin(stage: int) -> None:
        state.codes = codes_from_map(structure_map(positions, max(stage - 1, 0)), max(stage - 1, 0))

    counts = []
    calls: list[Callable[[], object]] = [partial(sampler._draw_stage, stage, state) for stage in stages]
    calls.append(partial(decode, sampler, state))
    with torch.inference_mode():
        for stage, call in zip((*stages, LAST), calls, strict=True):
            begin(stage)
            kernels.launched.clear()
            call()
            counts.append(Counter(kernels.launched))
        outside = Outside()  # torch compiles nothing under a dispatch mode
        sampler._compiled = {function: outside.inside(function) for function in sampler._compiled}
        for stage, call, launched in zip(stages, calls, counts, strict=False):
            begin(stage)
            launched["outside"] = counted(outside, call)
        sampler._graphs = OnlyCopies(sampler.device)
        for stage, call, launched in zip((*stages, LAST), calls, counts, strict=True):
            begin(stage)
            call()
            begin(stage)
            launched["copies"] = counted(Outside(), call)
    return counts


@torch.inference_mode()
def around(images: int, form: str) -> int:
    """The operations on the device before the first stage and after the decoder, of classes with known first logits."""
    with torch.device("meta"):
        sampler: Sampler = build(configured("d16", "content.depth=2", "structure.depth=2", form=form), "guided")
    sizes = sampler.tokenizer.config
    picture = torch.empty(images, sizes.channels, sizes.image_size, sizes.image_size, device="meta")
    *_, last = sampler.stages(list(range(images)))
    last = replace(last, decode=lambda canvas: picture)

    def run() -> None:
        sampler._start(list(range(images)), 0, None, {})
        try:
            last.images(list(range(images)))
        except NotImplementedError as error:  # the meta device has no numbers that the host could get
            if "meta" not in str(error):
                raise

    return counted(OnDevice(), run) + 1  # the copy of the pixels to the host, which was not made


def counted(outside: Outside, call: Callable[[], object]) -> int:
    """The operations of a call that `outside` counts."""
    before = outside.count
    with outside:
        call()
    return outside.count - before


def decode(sampler: Sampler, state: SamplingState) -> None:
    """The decoder's part of a picture."""
    sampler._decode(state.canvas)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--form", choices=FORMS, default="positions", help="tokens of the generators")
    parser.add_argument("--images", type=int, default=1)
    parser.add_argument("--depths", type=int, nargs=2, default=(4, 6), help="even: a head of the structure is 2")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    small, large = arguments.depths
    if small % 2 or large % 2 or not 0 < small < large:
        parser.error(f"--depths {small} {large}: two even numbers, the smaller one first")
    first, middle, last, decoder = count(small, arguments.images, (0, MIDDLE, LAST), arguments.form)
    deeper, _ = count(large, arguments.images, (MIDDLE,), arguments.form)
    print("| kind | stage 0 | each of stages 1 ... 7 | stage 8 | decoder | a picture |\n" + "| --- " * 6 + "|")
    rows = {}
    for kind in KINDS:
        both = (deeper[kind] - middle[kind]) / (large - small)  # of a block of each network
        blocks = [0, both * (16 - small), both * (16 - small) / 2, 0]  # stage 8 has the content's alone
        each = [round(one[kind] + more) for one, more in zip((first, middle, last, decoder), blocks, strict=True)]
        rows[kind] = [*each, each[0] + (LAST - 1) * each[1] + each[2] + each[3]]
    rows[AROUND] = [0, 0, 0, 0, around(arguments.images, arguments.form)]
    rows["together"] = together(rows, tuple(rows))
    rows["graphs"] = [1, 1, 1, 1, LAST + 2]
    rows["started by the host"] = together(rows, ("copies", AROUND, "graphs"))
    for name, numbers in rows.items():
        print(f"| {name} | " + " | ".join(map(str, numbers)) + " |")


def together(rows: Mapping[str, Sequence[int]], kinds: Sequence[str]) -> list[int]:
    """The sums of some rows, column by column."""
    return [sum(column) for column in zip(*(rows[kind] for kind in kinds), strict=True)]


if __name__ == "__main__":
    main()
