"""Print how large the models and tokens of configurations are: parameters, tokens, bytes and arithmetic.

    nvg describe conf/*.yaml

The result is a Markdown table. Nothing is trained or loaded: models are built on torch's meta device, which knows
shapes alone.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count, shape_wrapper

from nvg import config as configuration
from nvg.autoencoder import Autoencoder
from nvg.config import Config
from nvg.errors import ConfigError
from nvg.generator import ContentGenerator, StructureGenerator


@dataclass(frozen=True)
class Models:
    """The three models of a configuration, on the meta device, in evaluation mode."""

    autoencoder: Autoencoder
    content: ContentGenerator
    structure: StructureGenerator


def build_on_meta(config: Config) -> Models:
    """The models of a configuration without memory, the content generator with its alignment head if it has one."""
    with torch.device("meta"):
        return Models(
            Autoencoder(config.tokenizer).eval(),
            ContentGenerator(config.content).eval(),
            StructureGenerator(config.structure).eval(),
        )


def parameters(module: nn.Module) -> int:
    """How many numbers a module learns."""
    return sum(parameter.numel() for parameter in module.parameters())


def row_bytes(config: Config) -> int:
    """Bytes of a token row before compression, without its image_id: content, structure, label, view and, where the
    set has features, their checksum. The features themselves are `feature_bytes`."""
    positions = config.tokenizer.positions
    structure = positions * (1 if config.tokenizer.last_stage <= 8 else 2)
    return 2 * (2 * positions - 1) + structure + 2 + 1 + (4 if config.repa.weights is not None else 0)


def feature_bytes(config: Config) -> int:
    """Bytes of the alignment features of a row, which stand in a file beside the tokens; 0 without any."""
    return 2 * config.tokenizer.positions * config.repa.feature_width if config.repa.weights is not None else 0


# ---- operations ----


def _formulas() -> dict[Any, Callable[..., int]]:
    """torch's formulas by operation, with those of the CPU's fused attention, which it would count as nothing."""
    aten = torch.ops.aten
    fused: dict[Any, Callable[..., int]] = {
        aten._scaled_dot_product_flash_attention_for_cpu: lambda *shapes, **_: sdpa_flop_count(*shapes[:3]),
        aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda *shapes, **_: sdpa_backward_flop_count(
            *shapes[:4]
        ),
    }
    return {**flop_registry, **{operation: shape_wrapper(formula) for operation, formula in fused.items()}}


class Counter(TorchDispatchMode):
    """Counts operations within its block: floating-point ones (a multiply-add being two), and those that the host
    starts. torch's FlopCounterMode gives the same flops in three times the time.

    On the meta device torch finds the shape of a result in Python, which takes a millisecond: of the same arguments it
    is asked once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = self.ops = 0
        self.formulas = _formulas()
        self.known: dict[tuple, Any] = {}  # results on the meta device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        formula = self.formulas.get(func._overloadpacket)
        if formula is None and torch.is_inference_mode_enabled():  # which leaves composites to their modes
            with self:
                result = func.decompose(*args, **(kwargs or {}))
            if result is not NotImplemented:
                return result
        result = self._result(func, args, kwargs or {})
        self.ops += 1
        if formula is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=result)
        return result

    def _result(self, func: Any, args: Any, kwargs: Any) -> Any:
        devices: set[str] = set()
        key = (func, _described(args, devices), *(_described(pair, devices) for pair in kwargs.items()))
        if key in self.known:
            found = [None if one is None else torch.empty_strided(*one[:2], **one[2]) for one in self.known[key]]
            return tuple(found) if len(found) > 1 else found[0]
        result = func(*args, **kwargs)
        views = func._schema.is_mutable or any(one.alias_info for one in func._schema.returns)
        every = result if isinstance(result, tuple) else (result,)
        if devices == {"meta"} and not views and all(one is None or isinstance(one, Tensor) for one in every):
            self.known[key] = [
                None if one is None else (one.shape, one.stride(), {"dtype": one.dtype, "device": "meta"})
                for one in every
            ]
        return result


def _described(value: Any, devices: set[str]) -> Any:
    """What there is to an argument beside the numbers of tensors. devices: is filled with those of tensors."""
    if isinstance(value, Tensor):
        devices.add(value.device.type)
        return value.shape, value.stride(), value.dtype, value.device
    if isinstance(value, list | tuple):
        return tuple(_described(one, devices) for one in value)
    return type(value), value


def flops(call: Callable[[], object]) -> int:
    """The floating-point operations of a call, which is made."""
    with Counter() as counter:
        call()
    return counter.flops


PASSES = ("encoder", "decoder", "content", "structure")


def forward_flops(config: Config, passes: Iterable[str] = PASSES) -> dict[str, int]:
    """Floating-point operations of forward passes of one image, a multiply-add being two: matrix products, convolutions
    and attention. Of content and structure it is one pass at each of their stages: 0 ... K of the content, 1 ... K-1 of
    the structure."""
    models = build_on_meta(config)
    tokenizer = config.tokenizer
    with torch.device("meta"):
        image = torch.empty(1, tokenizer.channels, tokenizer.image_size, tokenizer.image_size)
        canvas = torch.empty(1, tokenizer.positions, tokenizer.code_width)
        codes = torch.empty(1, tokenizer.positions, dtype=torch.int64)
        noisy = torch.empty(1, tokenizer.positions, tokenizer.last_stage)
        label = torch.empty(1, dtype=torch.int64)

    def content() -> None:
        stages = range(tokenizer.last_stage + 1)
        tables = [models.content.rotary(codes, stage) for stage in stages]
        models.content([canvas] * len(stages), codes, label, label.new_tensor(list(stages)), tables)

    def structure() -> None:
        stages = range(1, tokenizer.last_stage)
        tables = [models.structure.rotary(codes, stage) for stage in stages]
        times, count = noisy.new_empty(1, len(stages)), len(stages)
        models.structure([noisy] * count, times, [canvas] * count, codes, label, label.new_tensor(list(stages)), tables)

    calls: dict[str, Callable[[], object]] = {
        "encoder": lambda: models.autoencoder.latents(image),
        "decoder": lambda: models.autoencoder.decode_canvas(canvas),
        "content": content,
        "structure": structure,
    }
    with torch.no_grad():
        return {name: flops(calls[name]) for name in passes}


# ---- the table ----

COLUMNS = (
    "config",
    "image",
    "latents",
    "stages",
    "content tokens",
    "bytes a token row",
    "tokenizer",
    "content",
    "structure",
    "forward GFLOP: encoder, decoder, content and structure of all stages",
)


def describe(config: Config) -> list[str]:
    """The cells of a configuration, in the order of COLUMNS. Parameters of the content generator are without the
    alignment head, which training alone uses."""
    models = build_on_meta(config)
    tokenizer = config.tokenizer
    content = parameters(models.content) - (parameters(models.content.align) if models.content.align else 0)
    flops = forward_flops(config)
    return [
        config.name,
        f"{tokenizer.image_size}² × {tokenizer.channels}, {config.data.num_classes} classes",
        f"{tokenizer.grid}² × {tokenizer.code_width}, V = {tokenizer.codebook_size}",
        str(tokenizer.last_stage + 1),
        str(2 * tokenizer.positions - 1),
        f"{row_bytes(config) + feature_bytes(config):,}",
        _millions(parameters(models.autoencoder)),
        f"d{config.content.depth}, {_millions(content)}",
        f"d{config.structure.depth}, {_millions(parameters(models.structure))}",
        ", ".join(_giga(value) for value in flops.values()),
    ]


def _millions(count: int) -> str:
    return f"{count / 1e6:.3g}M"


def _giga(count: int) -> str:
    return f"{count / 1e9:.3g}" if count < 1e11 else f"{count / 1e9:.0f}"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="+", metavar="FILE", help="YAML files, paths or URLs")
    try:
        rows = [describe(configuration.load(path)) for path in parser.parse_args(arguments).configs]
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for cells in (COLUMNS, ["---"] * len(COLUMNS), *rows):
        print("| " + " | ".join(cells) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
