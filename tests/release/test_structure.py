"""The structure generator against the released one: the flow of every stage, its condition, its sinusoids."""

import pytest
import torch

from nvg.generator.structure import signed_bits
from tests.release import ours, recipe

pytestmark = pytest.mark.usefixtures("rotation")


@pytest.fixture(scope="module")
def golden():
    return recipe.golden("structure")


@pytest.mark.parametrize("stage", range(1, ours.LAST_STAGE))
def test_velocities_are_the_released_ones(stage, generators, canvases, sequences, golden):
    _, structure = generators
    codes, time = sequences.codes, golden["times"][stage - 1]
    bits, fraction = signed_bits(codes, ours.LAST_STAGE), time[:, None, None]
    noisy = fraction * golden["noise"] + (1 - fraction) * bits
    noisy[..., : stage - 1] = bits[..., : stage - 1]
    with torch.no_grad():
        table, one = structure.rotary(codes, stage), torch.tensor([stage])
        (velocity,) = structure([noisy], time[:, None], [canvases[stage]], codes, golden["labels"], one, [table])
    torch.testing.assert_close(velocity, golden[f"make{stage}.velocity"], rtol=0, atol=3e-6)


def test_sinusoids_and_condition_are_the_released_ones(generators, golden):
    _, structure = generators
    backbone, time = structure.backbone, golden["times"][3]
    found = backbone.time_condition.sinusoids(time)
    torch.testing.assert_close(found, golden["make4.sinusoids"], rtol=0, atol=1e-4)  # angles go up to 1000
    condition = backbone.condition(golden["labels"], torch.full((3, 1), 4), time[:, None], None)[:, 0]
    expected = torch.nn.functional.silu(golden["make4.condition"])
    torch.testing.assert_close(condition, expected, rtol=0, atol=1e-5)
