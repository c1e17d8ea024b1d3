"""The released tokenizer's tensors (`encoder. decoder. quantize.` of ae.ckpt) as ours: other names, the same numbers.

Their phi_i(v) = v + conv_i(v) / 2 is ours, v / 2 + conv'_i(v) / 2, with conv'_i = conv_i + the identity.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nvg.config import TokenizerConfig
from nvg.errors import CheckpointError

PREFIXES = ("encoder.", "decoder.", "quantize.")
LEAST_WIDTH = 128  # from here on both systems normalise in 32 groups

RESIDUAL_BLOCK = {
    "norm1.norm": "norm1",
    "conv1.conv": "conv1",
    "norm2.norm": "norm2",
    "conv2.conv": "conv2",
    "nin_shortcut.conv": "skip",  # of blocks that change the width
}


@dataclass(frozen=True)
class Layout:
    """The numbers of modules of a released tokenizer."""

    levels: int  # resolutions
    blocks: int  # residual blocks per level, in the encoder
    decoder_blocks: int
    stages: int  # K + 1

    @staticmethod
    def of(state: Mapping[str, Tensor]) -> Layout:
        """The layout that the names say. Raises CheckpointError for one that no tokenizer has."""
        layout = Layout(
            levels=_count(state, r"encoder\.down\.(\d+)\."),
            blocks=_count(state, r"encoder\.down\.0\.block\.(\d+)\."),
            decoder_blocks=_count(state, r"decoder\.up\.0\.block\.(\d+)\."),
            stages=_count(state, r"quantize\.quant_resi\.(\d+)\."),
        )
        if layout.stages % 2 == 0:
            raise CheckpointError(
                f"quantize.quant_resi has {layout.stages} convolutions, which no square grid of positions has"
            )
        return layout

    def modules(self) -> dict[str, str]:
        """Our name of every released module with a weight and a bias, but for the quantizer's."""
        names = {
            "encoder.conv_in.conv": "encoder.stem.1",
            "encoder.norm_out.norm": "encoder.head.0",
            "encoder.conv_out.conv": "encoder.head.2",
            "decoder.conv_in.conv": "decoder.stem",
            "decoder.norm_out.norm": "decoder.norm",
            "decoder.conv_out.conv": "decoder.last_layer",
        }
        for part in ("encoder", "decoder"):
            names |= _residual({f"{part}.mid.block_{number + 1}": f"{part}.middle.{number}" for number in range(2)})
        size = self.blocks + 1  # of a level of the encoder's body: residual blocks, then the stride-2 convolution
        for level in range(self.levels):
            names |= _residual(
                {f"encoder.down.{level}.block.{b}": f"encoder.body.{level * size + b}" for b in range(self.blocks)}
            )
            if level < self.levels - 1:
                names[f"encoder.down.{level}.downsample.conv.conv"] = f"encoder.body.{(level + 1) * size - 1}"
        size = self.decoder_blocks + 2  # residual blocks, nearest-neighbour enlargement, convolution
        for level in range(self.levels):  # theirs number the levels of both bodies from the finest on
            first = (self.levels - 1 - level) * size
            names |= _residual(
                {f"decoder.up.{level}.block.{b}": f"decoder.body.{first + b}" for b in range(self.decoder_blocks)}
            )
            if level > 0:
                names[f"decoder.up.{level}.upsample.conv.conv"] = f"decoder.body.{first + size - 1}"
        return names


def convert_tokenizer(state: Mapping[str, Tensor]) -> tuple[TokenizerConfig, dict[str, Tensor]]:
    """The configuration and the state dict of `nvg.autoencoder.Autoencoder`.

    state: every released tensor under PREFIXES, and nothing else. Raises CheckpointError naming the released tensor
    that is missing, foreign or of a shape that does not fit.
    """
    layout = Layout.of(state)
    renamed = {name: f"quantizer.{value}" for name, value in _quantizer_names(layout.stages).items()}
    for theirs, ours in layout.modules().items():
        renamed |= {f"{theirs}.{kind}": f"{ours}.{kind}" for kind in ("weight", "bias")}
    optional = {name for name in renamed if ".nin_shortcut." in name}
    if missing := [name for name in renamed if name not in state and name not in optional]:
        raise CheckpointError(f"{missing[0]} is missing from the released tokenizer's weights")
    if foreign := [name for name in state if name not in renamed]:
        raise CheckpointError(f"{len(foreign)} keys of the released tokenizer are unknown: {', '.join(foreign[:3])}")
    config = _config(state, layout)
    converted = {f"quantizer.{name}": value for name, value in convert_quantizer(state).items()}
    for name, value in state.items():
        if not name.startswith("quantize."):
            converted[renamed[name]] = value.float()
    return config, converted


def convert_quantizer(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of `nvg.autoencoder.GranularityQuantizer`, from the tensors under `quantize.`."""
    converted = {}
    for theirs, ours in _quantizer_names(_count(state, r"quantize\.quant_resi\.(\d+)\.")).items():
        value = state[theirs].float()
        if theirs.endswith("weight") and "quant_resi" in theirs:
            value = value + nn.init.dirac_(torch.empty_like(value))
        converted[ours] = value
    return converted


def _quantizer_names(stages: int) -> dict[str, str]:
    names = {"quantize.embedding.weight": "codebook"}
    for stage in range(stages):
        for kind in ("weight", "bias"):
            names[f"quantize.quant_resi.{stage}.{kind}"] = f"convolutions.{stage}.{kind}"
    return names


def _residual(blocks: Mapping[str, str]) -> dict[str, str]:
    """The modules of some residual blocks, from the blocks' names."""
    return {
        f"{theirs}.{their_module}": f"{ours}.{our_module}"
        for theirs, ours in blocks.items()
        for their_module, our_module in RESIDUAL_BLOCK.items()
    }


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    """How many numbers, 0 and up, stand in the names that fit a pattern. Raises CheckpointError where none does."""
    numbers = {int(found[1]) for name in state if (found := re.match(pattern, name))}
    if numbers != set(range(len(numbers))) or not numbers:
        first = pattern.replace("\\", "").replace("(d+)", str(min(set(range(len(numbers) + 1)) - numbers)))
        raise CheckpointError(f"{first}* is missing from the released tokenizer's weights")
    return len(numbers)


def _config(state: Mapping[str, Tensor], layout: Layout) -> TokenizerConfig:
    """The configuration that the shapes say."""
    widths = [_size(state, f"encoder.down.{n}.block.0.conv1.conv.weight", 4)[0] for n in range(layout.levels)]
    if any(width < LEAST_WIDTH or width % 32 for width in widths):
        raise CheckpointError(f"the released tokenizer has widths {widths}, not multiples of 32 from {LEAST_WIDTH} on")
    entries, code_width = _size(state, "quantize.embedding.weight", 2)
    grid = math.isqrt(2 ** (layout.stages - 1))
    return TokenizerConfig(
        image_size=grid * 2 ** (layout.levels - 1),
        channels=_size(state, "encoder.conv_in.conv.weight", 4)[1],
        widths=widths,
        blocks=layout.blocks,
        decoder_blocks=layout.decoder_blocks,
        attention=False,
        code_width=code_width,
        codebook_size=entries,
        child_order="merge",
    )


def _size(state: Mapping[str, Tensor], name: str, dimensions: int) -> tuple[int, ...]:
    shape = tuple(state[name].shape)
    if len(shape) != dimensions:
        raise CheckpointError(f"{name} of the released tokenizer has shape {shape}, not {dimensions} axes")
    return shape
