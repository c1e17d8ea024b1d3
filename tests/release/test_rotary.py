"""Rotary ids and tables against the released system's, of both generators."""

import pytest
import torch

from nvg.generator.rope import CONDITION, GENERATED, axis_widths, class_token_ids, rotary_table, token_ids
from nvg.granularity import structure_embedding
from tests.release import ours, recipe

KINDS = {"content": (GENERATED,), "structure": (CONDITION, GENERATED)}


@pytest.fixture(scope="module")
def golden():
    return recipe.golden("rotary")


def ids(part, codes, stage):
    known = structure_embedding(codes, stage)
    tokens = [token_ids(kind, known, ours.GRID) for kind in KINDS[part]]
    return torch.cat([class_token_ids(1, ours.LAST_STAGE, known.device), *tokens], dim=1)


@pytest.mark.parametrize(("part", "stage"), [("content", 0), ("content", 3), ("content", 8), ("structure", 3)])
def test_ids_are_the_released_ones(part, stage, golden, sequences):
    assert torch.equal(ids(part, sequences.codes[:1], stage)[0], golden[f"stage{stage}.{part}_ids"].float())


@pytest.mark.parametrize("part", ["content", "structure"])
def test_tables_are_the_released_ones(part, golden, sequences, generators):
    """Of ids, and as the networks make them: the structure generator makes stage 4 where stage 3 is known."""
    expected = golden[f"stage3.{part}_table"]
    table = rotary_table(ids(part, sequences.codes[:1], 3), axis_widths(ours.LAST_STAGE))[0, 0]
    torch.testing.assert_close(table, expected, rtol=0, atol=1e-7)
    content, structure = generators
    made = content.rotary(sequences.codes[:1], 3) if part == "content" else structure.rotary(sequences.codes[:1], 4)
    torch.testing.assert_close(made[0, 0], expected, rtol=0, atol=1e-7)
