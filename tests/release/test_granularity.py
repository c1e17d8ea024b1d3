"""Structure codes against those of the released system: `tokenizer.child_order=merge` has its names of children."""

import pytest
import torch

from nvg.granularity import structure_codes, structure_map
from tests.release.recipe import golden
from tests.support.reference import sequential_codes

KINDS = ("white", "smooth", "ties")  # noise; fields as encoders make them; whole numbers, full of equal distances


@pytest.fixture(scope="module")
def numbers():
    return golden("granularity")


@pytest.mark.parametrize("kind", KINDS)
def test_merge_codes_are_those_of_the_released_system(numbers, kind):
    assert torch.equal(structure_codes(numbers[f"{kind}.latents"], "merge"), numbers[f"{kind}.codes"])


@pytest.mark.parametrize("kind", KINDS)
def test_raster_codes_have_the_same_clusters_at_every_stage(numbers, kind):
    """But for the ties: which of two equally distant pairs comes first depends on the numbering."""
    raster, released = structure_codes(numbers[f"{kind}.latents"]), numbers[f"{kind}.codes"]
    if kind == "ties":
        assert torch.equal(raster[0], sequential_codes(numbers["ties.latents"][0]))
        return
    for stage in range(9):
        ours, theirs = structure_map(raster, stage), structure_map(released, stage)
        for a, b in zip(ours, theirs, strict=True):
            assert len(set(zip(a.tolist(), b.tolist(), strict=True))) == 2**stage
    assert not torch.equal(raster, released)
