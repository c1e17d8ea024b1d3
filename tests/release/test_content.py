"""The content generator against the released one: every stage, and what enters and leaves its first block."""

import pytest
import torch

from tests.release import ours, recipe

pytestmark = pytest.mark.usefixtures("rotation")


@pytest.fixture(scope="module")
def golden():
    return recipe.golden("content")


@torch.no_grad()
def estimate(content, canvases, sequences, labels, stage):
    codes, stages = sequences.codes, torch.tensor([stage])
    ((difference,), _) = content([canvases[stage]], codes, labels, stages, [content.rotary(codes, stage)])
    return canvases[stage] + difference


@pytest.mark.parametrize("stage", range(ours.LAST_STAGE + 1))
def test_estimates_and_logits_are_the_released_ones(stage, generators, canvases, sequences, golden):
    content, _ = generators
    found = estimate(content, canvases, sequences, golden["labels"], stage)
    row = stage % 3  # the golden file has an image a stage
    torch.testing.assert_close(found[row : row + 1], golden[f"stage{stage}.estimate"], rtol=0, atol=1e-5)
    logits = content.logits(found - canvases[stage], sequences.codes, stage)
    torch.testing.assert_close(logits, golden[f"stage{stage}.logits"], rtol=0, atol=2e-4)


def test_condition_and_first_block_are_the_released_ones(generators, canvases, sequences, golden):
    content, _ = generators
    backbone, left = content.backbone, []
    handle = backbone.blocks[0].register_forward_hook(lambda block, inputs, output: left.append(output))
    estimate(content, canvases, sequences, golden["labels"], 3)
    handle.remove()
    torch.testing.assert_close(left[0][:1], golden["stage3.block0"], rtol=0, atol=1e-5)
    condition = backbone.condition(golden["labels"], torch.full((3, 1), 3), None, None)[:, 0]
    expected = torch.nn.functional.silu(golden["stage3.condition"])
    torch.testing.assert_close(condition, expected, rtol=0, atol=1e-6)
