"""The key table of the released generators: every published key is used or left out on purpose, damage is named."""

import pytest
import torch

from nvg.errors import CheckpointError
from nvg.generator import ContentGenerator, StructureGenerator
from nvg.released.generators import IGNORED, generators
from tests.release import ours, recipe


@pytest.fixture(scope="module")
def state():
    return ours.released_state()


def test_every_published_key_is_used_once_and_the_states_are_our_modules(state):
    """At the published size, on the meta device: no number is made."""
    shapes = recipe.keys_and_shapes("d16")
    with torch.device("meta"):
        published = {key.removeprefix("nvgformer."): torch.empty(shape) for key, shape in shapes.items()}
        content_config, content, structure_config, structure = generators(published, grid=16)
        modules = ContentGenerator(content_config), StructureGenerator(structure_config)
    for module, converted in zip(modules, (content, structure), strict=True):
        expected = {name: value.shape for name, value in module.state_dict().items()}
        assert {name: value.shape for name, value in converted.items()} == expected
    assert (content_config.depth, structure_config.depth, content_config.num_classes) == (16, 16, 1000)
    assert not content_config.residual and content_config.codebook_size == 4096
    left_out = [key for key in published if key.startswith(IGNORED)]
    assert {key.split(".")[0] for key in left_out} == {"rope_ids", "projector"}


def test_what_is_folded(state):
    _, content, _, structure = generators(state, grid=16)
    divisor = state["scale_factors"][-1]
    torch.testing.assert_close(content["difference.weight"] * divisor, state["x0_head.linear.weight"])
    assert torch.equal(content["input_scales"], state["scale_factors"][:9]) and not content["log_gain"].any()
    rows = structure["backbone.stage_condition.weight"]
    assert torch.equal(rows[1:8], state["structure_stage_embed.weight"]) and not rows[[0, 8]].any()
    for part, converted in (("content", content), ("structure", structure)):
        for use in ("token", "condition"):
            assert torch.equal(converted[f"backbone.class_{use}.weight"], state[f"{part}_class_embed.weight"])


def test_half_precision_becomes_float32(state):
    _, content, _, _ = generators({key: value.bfloat16() for key, value in state.items()}, grid=16)
    assert {value.dtype for value in content.values()} == {torch.float32}


@pytest.mark.parametrize(
    "key",
    [
        "content_embed.weight",
        "content_start_embed",
        "scale_factors",
        "content_blocks.0.linear1.weight",
        "content_blocks.1.norm.key_norm.scale",
        "structure_stage_embed.weight",
        "structure_time_embed.out_layer.bias",
        "structure_blocks.0.linear1.weight",
    ],
)
def test_a_key_that_is_missing_or_misshapen_is_named(key, state):
    with pytest.raises(CheckpointError, match=f"^{key} is missing from the released generators' weights"):
        generators({name: value for name, value in state.items() if name != key}, grid=16)
    bent = state | {key: state[key][..., :-1]}
    with pytest.raises(CheckpointError, match="of the released generators has shape"):
        generators(bent, grid=16)


def test_unknown_keys_and_another_grid_are_refused(state):
    with pytest.raises(CheckpointError, match="1 keys of the released generators are unknown: surprise"):
        generators(state | {"surprise": torch.zeros(1)}, grid=16)
    with pytest.raises(CheckpointError, match="scale_factors .* has shape"):
        generators(state, grid=8)
