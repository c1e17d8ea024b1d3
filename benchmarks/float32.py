"""Which operations of a picture are in float32, where the transformers' blocks are in bfloat16?

    python -m benchmarks.float32 [--depth d16]

Counts the operations of a picture by the "guided" schedule of `benchmarks/schedules.py`, from the random numbers to the
pixels, uncompiled, with all networks on torch's meta device: it has shapes and no numbers, and takes a GPU's path. An
operation is in float32 where a number that it takes or gives is (or in float64). `ALLOWED` has all of them with the
reason; `python -m benchmarks.float32` ends with 1 where another one appears, or one is gone.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from benchmarks.schedules import DEPTHS, FORMS, build, configured
from benchmarks.tracing import Numbers, place

WIDE = (torch.float32, torch.float64)
Found = tuple[str, str]  # a place in the code, and an operation

ALLOWED: Mapping[str, tuple[str, str]] = {
    # into the blocks, and out of them
    "block.Backbone.forward": ("_to_copy", "tokens to bfloat16 and outputs back, once a pass"),
    "block.Backbone.condition": ("_to_copy", "conditions to bfloat16, once a pass"),
    "block.TimeEmbedding.sinusoids": ("cat cos mul sin", "angles up to 1000: bfloat16 rounds them to fours"),
    "block.TimeEmbedding.forward": ("_to_copy addmm silu", "guidance and step size, a row each: outside of the blocks"),
    "tokens.PositionNetwork.means": ("add addmm cat embedding silu", "reads the canvas"),
    "tokens.cluster_tokens": ("add addmm cat", "reads the canvas"),
    "granularity.neighbour_means": ("mean", "means of the canvas, and of rows and columns"),
    "granularity.take": ("index_select", "the canvas in the order of codes"),
    "content.ContentGenerator.forward": (
        "addmm cat div index mul repeat sub where",
        "reads the canvas, and gives what it lacks",
    ),
    "structure.StructureGenerator.forward": (
        "add addmm cat div sub",
        "reads the canvas and the flow, gives a velocity",
    ),
    # rotary tables, once a stage
    "content.ContentGenerator.rotary": ("cat", "ids of rows, columns and bits"),
    "structure.StructureGenerator.rotary": ("cat", "ids of rows, columns and bits"),
    "rope.Rotary.forward": ("copy_ cos repeat sin stack", "angles"),
    "rope.class_token_ids": ("full", "ids of rows, columns and bits"),
    "rope.cluster_ids": ("_to_copy cat full_like mul scalar_tensor where", "ids of rows, columns and bits"),
    "rope.token_ids": ("_to_copy cat", "ids of rows, columns and bits"),
    "rope.Rotary.of_ids": ("cos index_select mul sin stack", "angles up to 16: bfloat16 rounds them to sixteenths"),
    "rope.for_blocks": ("_to_copy", "the table to bfloat16"),
    # the content of a stage
    "content.ContentGenerator.logits": ("addmm exp mul", "logits"),
    "granularity.cluster_means": ("mul new_zeros scatter_add", "means of what the canvas lacks, and of preferences"),
    "nucleus.pick": ("div", "logits"),
    "nucleus.nucleus_sample": ("_softmax cumsum lt mul sort sub sum", "sums of 4,096 probabilities, compared"),
    # the structure of a stage
    "granularity.structure_embedding": ("mul scalar_tensor where", "-1, 0, 1: the flow's known channels"),
    "granularity.assign": ("gather", "means of preferences"),
    "granularity.split_codes": ("sort", "preferences: ties would change clusters"),
    "structure.signed_bits": ("sub", "-1, 0, 1: the flow's known channels"),
    "halving.flow_start": ("cat", "the flow's state"),
    "halving.euler_step": ("add cat mul", "the flow's state"),
    "halving.halving_preference": (
        "add clamp clamp_min div gt log mul where",
        "preferences: ties would change clusters",
    ),
    "noise.gumbel": ("clamp log neg", "logarithms of uniform numbers near 0 and 1"),
    # settings, a number an image
    "schedules.falling_top_p": ("add mul rsub", "a number an image"),
    "schedules.ramp": ("add mul sub", "a number an image"),
    "sampler.Sampler._integrate": ("full_like sub", "a number an image"),
    "sampler.Sampler._sample_structure": ("_to_copy", "preferences of the last stage: positions"),
    # the canvas, and its picture
    "sampler.Sampler._stage": ("add", "the canvas"),
    "quantizer.GranularityQuantizer.increment": ("embedding", "the canvas: entries of the codebook"),
    "quantizer.GranularityQuantizer.phi": ("add convolution mul", "the canvas"),
    "layers.Decoder.forward": (
        "convolution native_group_norm pixel_shuffle silu upsample_nearest2d",
        "bfloat16 moves pixels by 2 levels",
    ),
    "layers.ResidualBlock.forward": ("add convolution native_group_norm silu", "bfloat16 moves pixels by 2 levels"),
}


class Float32(Numbers):
    """Counts operations by place, name, and whether they are in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.wide: Counter[Found] = Counter()
        self.total = 0

    def see(self, operation: str, tensors: list[Tensor]) -> None:
        self.total += 1
        self.wide[place(), operation] += any(one.dtype in WIDE for one in tensors)


def traced(depth: str, form: str) -> Float32:
    """The operations of one picture."""
    with torch.device("meta"):
        sampler = build(configured(depth, form=form), "guided")
    sampler.to("meta", dtype=torch.bfloat16)
    counts = Float32()
    with torch.inference_mode():
        state = sampler._start([0], 0, None, {})  # from here on the first logits are known
        with counts:
            for stage in range(sampler.last_stage + 1):
                sampler._draw_stage(stage, state)
            sampler.tokenizer.decode_canvas(state.canvas)
    counts.wide = +counts.wide
    return counts


def unexpected(counts: Sequence[Float32]) -> list[str]:
    """A line for each operation that is not allowed, and each allowed one that no picture has."""
    found = {one for count in counts for one in count.wide}
    allowed = {(where, operation) for where, (names, _) in ALLOWED.items() for operation in names.split()}
    lines = [f"not allowed: {operation} in {where}" for where, operation in sorted(found - allowed)]
    return lines + [f"no longer there: {operation} in {where}" for where, operation in sorted(allowed - found)]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--depth", choices=DEPTHS, default="d16")
    depth = parser.parse_args().depth
    counts = {form: traced(depth, form) for form in FORMS}
    print(f"| in float32 | {' | '.join(counts)} | why |\n" + "| --- " * (2 + len(counts)) + "|")
    for where, (_, reason) in ALLOWED.items():
        each = [sum(number for (one, _), number in count.wide.items() if one == where) for count in counts.values()]
        print(f"| `{where}` | {' | '.join(map(str, each))} | {reason} |")
    shares = [f"{count.wide.total()} of {count.total}" for count in counts.values()]
    print(f"| together | {' | '.join(shares)} | |")
    sys.exit("\n".join(unexpected(list(counts.values()))) or 0)


if __name__ == "__main__":
    main()
