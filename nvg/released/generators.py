"""The released generators' weights as ours: every key, renamed or folded into what we compute.

What is folded, not renamed: one class table is our class token and our class condition; the structure generator's
table of stages begins with the one that makes stage 1; the content head's output is divided by the last number of
`scale_factors`; our gain of the logits, which the released system has not, is 1.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from nvg.config import ContentConfig, StructureConfig
from nvg.errors import CheckpointError
from nvg.granularity import last_stage

IGNORED = ("rope_ids", "projector.")  # a constant, and the head of representation alignment, for training alone
BLOCK = {
    "linear1.weight": "project_in.weight",
    "linear1.bias": "project_in.bias",
    "linear2.weight": "project_out.weight",
    "linear2.bias": "project_out.bias",
    "modulation.lin.weight": "modulation.weight",
    "modulation.lin.bias": "modulation.bias",
    "norm.query_norm.scale": "query_norm.weight",
    "norm.key_norm.scale": "key_norm.weight",
}


def generators(
    state: Mapping[str, Tensor], *, grid: int
) -> tuple[ContentConfig, dict[str, Tensor], StructureConfig, dict[str, Tensor]]:
    """Configurations and float32 states of our content and structure generator, from the released ones' state.

    state: by the keys behind `nvgformer.`; of a published checkpoint take those of `ema_model.nvgformer.`. grid: latent
    positions on a side. Widths, depth, codes and classes are read from the shapes. Raises CheckpointError naming a key
    that is missing, of another shape than the others ask for, or unknown.
    """
    keys = _Keys(state)
    content_config, structure_config = _configs(keys, grid)
    content = _content(keys, content_config)
    structure = _structure(keys, structure_config)
    keys.check_empty()
    return content_config, content, structure_config, structure


class _Keys:
    """The released state, from which every tensor is taken once."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self.left = {key: value for key, value in state.items() if not key.startswith(IGNORED)}

    def shape(self, key: str, dimensions: int) -> torch.Size:
        """The shape of a tensor that stays. Raises CheckpointError."""
        shape = self._find(key).shape
        if len(shape) != dimensions:
            raise CheckpointError(f"{key} of the released generators has shape {tuple(shape)}, not {dimensions} axes")
        return shape

    def take(self, key: str, *shape: int) -> Tensor:
        """A tensor in float32. Raises CheckpointError where it is missing or has another shape."""
        value = self._find(key)
        if tuple(value.shape) != shape:
            raise CheckpointError(
                f"{key} of the released generators has shape {tuple(value.shape)}, and {shape} fits the other weights"
            )
        return self.left.pop(key).detach().float()

    def linear(self, key: str, inputs: int, outputs: int, name: str) -> dict[str, Tensor]:
        """Weight and bias of a linear layer, by our name for it."""
        return {
            f"{name}.weight": self.take(f"{key}.weight", outputs, inputs),
            f"{name}.bias": self.take(f"{key}.bias", outputs),
        }

    def count(self, prefix: str) -> int:
        """The number of blocks with a prefix. Raises CheckpointError where there is none."""
        self._find(f"{prefix}0.linear1.weight")
        return len({key.split(".")[1] for key in self.left if key.startswith(prefix)})

    def check_empty(self) -> None:
        """Raises CheckpointError for a key that nobody took."""
        if self.left:
            first = ", ".join(sorted(self.left)[:3])
            raise CheckpointError(f"{len(self.left)} keys of the released generators are unknown: {first}")

    def _find(self, key: str) -> Tensor:
        if key not in self.left:
            raise CheckpointError(f"{key} is missing from the released generators' weights")
        return self.left[key]


def _configs(keys: _Keys, grid: int) -> tuple[ContentConfig, StructureConfig]:
    """What the shapes tell. `_content` and `_structure` check every shape against it."""
    depth = keys.count("content_blocks.")
    code_width = keys.shape("content_embed.weight", 2)[1]
    codebook_size = keys.shape("cls_head.linear.weight", 2)[0]
    num_classes = keys.shape("content_class_embed.weight", 2)[0] - 1
    content = ContentConfig(
        depth=depth,
        grid=grid,
        code_width=code_width,
        codebook_size=codebook_size,
        num_classes=num_classes,
        residual=False,
        repa_block=None,
        repa_width=768,
    )
    depth = keys.count("structure_blocks.")
    return content, StructureConfig(depth=depth, grid=grid, code_width=code_width, num_classes=num_classes)


def _content(keys: _Keys, config: ContentConfig) -> dict[str, Tensor]:
    """State of the content generator."""
    width, last = 64 * config.depth, last_stage(config.grid**2)
    scales = keys.take("scale_factors", last + 2)
    head = keys.linear("x0_head.linear", width, config.code_width, "difference")
    return {
        "start": keys.take("content_start_embed", 1, config.grid**2, config.code_width),
        "input_scales": scales[:-1].clone(),
        "log_gain": torch.zeros(last + 1),
        "backbone.stage_condition.weight": keys.take("content_stage_embed.weight", last + 1, width),
        **{name: value / scales[-1] for name, value in head.items()},
        **keys.linear("content_embed", config.code_width, width, "embed"),
        **keys.linear("cls_head.linear", config.code_width, config.codebook_size, "to_logits"),
        **_backbone(keys, "content", "x0_head", config.depth, width, config.num_classes),
    }


def _structure(keys: _Keys, config: StructureConfig) -> dict[str, Tensor]:
    """State of the structure generator. Its stages 0 and K, which no flow makes, get zeros: nobody reads them."""
    width, last = 32 * config.depth, last_stage(config.grid**2)
    stages = torch.zeros(last + 1, width)
    stages[1:last] = keys.take("structure_stage_embed.weight", last - 1, width)
    time = "backbone.time_condition.mlp"
    return {
        "backbone.stage_condition.weight": stages,
        **keys.linear("structure_content_cond_embed", config.code_width, width, "embed_canvas"),
        **keys.linear("structure_embed", last, width, "embed_structure"),
        **keys.linear("structure_time_embed.in_layer", 64, width, f"{time}.0"),
        **keys.linear("structure_time_embed.out_layer", width, width, f"{time}.2"),
        **keys.linear("structure_head.linear", width, last, "velocity"),
        **_backbone(keys, "structure", "structure_head", config.depth, width, config.num_classes),
    }


def _backbone(keys: _Keys, part: str, head: str, depth: int, width: int, num_classes: int) -> dict[str, Tensor]:
    """What both generators have alike: class tables, blocks, the last modulation."""
    classes = keys.take(f"{part}_class_embed.weight", num_classes + 1, width)
    shapes = {
        "linear1": (7 * width, width),
        "linear2": (width, 5 * width),
        "modulation": (3 * width, width),
        "norm": (64,),
    }
    state = {
        "backbone.class_token.weight": classes,
        "backbone.class_condition.weight": classes.clone(),
        **keys.linear(f"{head}.adaLN_modulation.1", width, 2 * width, "backbone.modulation"),
    }
    for block in range(depth):
        for theirs, ours in BLOCK.items():
            shape = shapes[theirs.split(".")[0]]
            value = keys.take(f"{part}_blocks.{block}.{theirs}", *(shape[:1] if theirs.endswith("bias") else shape))
            state[f"backbone.blocks.{block}.{ours}"] = value
    return state
