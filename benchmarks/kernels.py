"""Kernels of one picture drawn by a compiled sampler: counted in the code that torch.compile writes, on any machine.

    python -m benchmarks.kernels [--images 1] [--depths 4 6]

The schedule is "guided" of `benchmarks/schedules.py`: one pass a stage of both generators, one flow step. Inductor
writes each function's code, for a CPU, and the calls in it are counted: kernels that it generates (loops over elements
and reductions, fused), and library calls (matrix products, attention, convolutions). What runs outside of compiled
functions is counted as operations that make numbers. Nothing is translated: the functions then run as they were.
The host starts what runs outside, and each compiled function as one CUDA graph.
All blocks of a network are alike, so two small depths, of several heads each, give the count of d16; stages 1 ... 7
are alike, so stage 4 stands for them. For CUDA inductor fuses by other rules of thumb, and nothing is filled up to four
rows or images there: the count is near, not equal. Position tokens, a class whose first logits are known.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.schedules import build, configured
from nvg.generator import Sampler
from nvg.generator.state import SamplingState
from nvg.granularity import codes_from_map, structure_map

LAUNCH = re.compile(r"^\s+(?:[\w, ]+ = )?(cpp_fused_\w+|extern_kernels\.\w+|torch\.ops\.[\w.]+)\(", re.MULTILINE)
MIDDLE, LAST = 4, 8  # stages
KINDS = ("generated", "library", "outside")
GRAPHS = "graphs"  # the key of how many compiled functions ran
VIEWS = ("as_strided", "alias", "reshape")  # calls of the written code that make no numbers


class Written(Exception):  # noqa: N818 (no error: the code is there, and is not wanted otherwise)
    """Carries the code that inductor has written for a graph."""


class Kernels:
    """A backend of torch.compile that counts what each run of a graph would launch."""

    def __init__(self) -> None:
        self.launched: Counter[str] = Counter()

    def __call__(self, module: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        counts = Counter(kind_of(call) for call in launches(module, inputs)) + Counter([GRAPHS])

        def run(*arguments: Any) -> Any:
            self.launched.update(counts)
            return module.forward(*arguments)

        return run


class Outside(TorchDispatchMode):
    """Counts operations that make numbers, those of the functions in `inside` left out, whose results are copied."""

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
            self.count += sum(isinstance(one, torch.Tensor) for one in tree_leaves(result))  # nvg.generator.compiled
            return result

        return run

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += self.counts and not func.is_view and "empty" not in str(func)
        return func(*args, **(kwargs or {}))


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


def count(depth: int, images: int, stages: Sequence[int]) -> list[Counter[str]]:
    """The launches of some stages by a sampler of this depth, its graphs too, and then those of the decoder."""
    torch._dynamo.reset()
    overrides = (f"content.depth={depth}", f"structure.depth={depth}", "tokenizer.widths=[32,32,32,32,32]")
    sampler: Sampler = build(configured("d16", *overrides), "guided")
    kernels = Kernels()
    sampler.compile((), backend=kernels)
    state = sampler._start(list(range(images)), 0, None, {})  # from here on the first logits are known
    positions = torch.arange(state.codes.shape[1]).expand_as(state.codes)

    def draw(stage: int) -> None:
        state.codes = codes_from_map(structure_map(positions, max(stage - 1, 0)), max(stage - 1, 0))
        sampler._draw_stage(stage, state)

    counts = []
    with torch.inference_mode():
        for call in [*(partial(draw, stage) for stage in stages), partial(decode, sampler, state)]:
            kernels.launched.clear()
            call()
            counts.append(Counter(kernels.launched))
        for stage, launched in zip(stages, counts, strict=False):  # torch compiles nothing under a dispatch mode
            outside = Outside()
            sampler._compiled = {function: outside.inside(function) for function in sampler._compiled}
            with outside:
                draw(stage)
            launched["outside"] = outside.count
    return counts


def decode(sampler: Sampler, state: SamplingState) -> None:
    """The decoder's part of a picture."""
    sampler.tokenizer.decode_canvas(state.canvas)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=1)
    parser.add_argument("--depths", type=int, nargs=2, default=(4, 6), help="even: a head of the structure is 2")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    small, large = arguments.depths
    if small % 2 or large % 2 or not 0 < small < large:
        parser.error(f"--depths {small} {large}: two even numbers, the smaller one first")
    first, middle, last, decoder = count(small, arguments.images, (0, MIDDLE, LAST))
    deeper, _ = count(large, arguments.images, (MIDDLE,))
    print("| kind | stage 0 | each of stages 1 ... 7 | stage 8 | decoder | a picture |\n" + "| --- " * 6 + "|")
    rows = {}
    for kind in (*KINDS, GRAPHS):
        both = (deeper[kind] - middle[kind]) / (large - small)  # of a block of each network
        blocks = [0, both * (16 - small), both * (16 - small) / 2, 0]  # stage 8 has the content's alone
        each = [round(one[kind] + more) for one, more in zip((first, middle, last, decoder), blocks, strict=True)]
        rows[kind] = [*each, each[0] + (LAST - 1) * each[1] + each[2] + each[3]]
    rows["together"] = together(rows, KINDS)
    rows["started by the host"] = together(rows, ("outside", GRAPHS))
    for name in (*KINDS, "together", "started by the host"):
        print(f"| {name} | " + " | ".join(map(str, rows[name])) + " |")


def together(rows: Mapping[str, Sequence[int]], kinds: Sequence[str]) -> list[int]:
    """The sums of some rows, column by column."""
    return [sum(column) for column in zip(*(rows[kind] for kind in kinds), strict=True)]


if __name__ == "__main__":
    main()
