"""Pieces of the sampler against the released ones: the halving of clusters, with and without noise, and top-p."""

import pytest
import torch

from nvg.generator.halving import halving_preference
from nvg.generator.noise import gumbel
from nvg.generator.nucleus import nucleus_sample
from nvg.granularity import codes_from_map, split_codes, structure_map
from tests.release import recipe


@pytest.fixture(scope="module")
def golden():
    return recipe.golden("pieces")


@pytest.mark.parametrize(("name", "temperature"), [("plain", 0.0), ("gumbel", 1.0)])
def test_halves_are_the_released_ones(name, temperature, golden):
    parents = golden["halving.structure"].long()
    order = parents.sort(dim=1, stable=True).indices  # by cluster, its positions in raster order
    uniform = torch.zeros(2, 256).scatter(1, order, golden["halving.uniform"].flatten(1))
    temperatures = torch.full((2,), temperature)
    preference = halving_preference(golden["halving.preference"], parents, 4, temperatures, uniform)
    codes = split_codes(codes_from_map(parents, 2), 3, preference, rename=False)
    assert torch.equal(structure_map(codes, 3), golden[f"halving.{name}"].long())


def test_the_noisy_preference_is_the_formula(golden):
    z, parents = golden["halving.preference"], golden["halving.structure"].long()
    uniform = torch.rand(2, 256, generator=torch.Generator().manual_seed(0))
    found = halving_preference(z, parents, 4, torch.tensor([0.5, 2.0]), uniform)
    noise = gumbel(uniform)
    for image, temperature in enumerate((0.5, 2.0)):
        for cluster in range(4):
            those = parents[image] == cluster
            weight = z[image, those].clamp(-1, 1) + 1
            expected = (weight / weight.sum() + 1e-8).log() + temperature * noise[image, those]
            torch.testing.assert_close(found[image, those], expected)


def test_a_cluster_that_wants_no_bit_1_at_all_is_halved_by_the_noise():
    uniform = torch.rand(1, 16, generator=torch.Generator().manual_seed(0))
    parents = torch.zeros(1, 16, dtype=torch.int64)
    found = halving_preference(torch.full((1, 16), -2.0), parents, 1, torch.ones(1), uniform)
    assert torch.isfinite(found).all() and torch.equal(found.argsort(), uniform.argsort())


@pytest.mark.parametrize("top_p", ["0.05", "0.5", "0.916", "1.0"])
def test_codes_are_drawn_from_the_released_nucleus(top_p, golden):
    """Sorted in falling order, the first code whose cumulative probability reaches a number: every number's code."""
    filtered = golden[f"filtered.k0.p{top_p}"]  # (1, 40, 64), renormalised
    probabilities, order = filtered.sort(dim=-1, descending=True, stable=True)
    cumulative = probabilities.double().cumsum(dim=-1)
    for number in torch.linspace(0.01, 0.99, 25, dtype=torch.float64).tolist():
        near = (cumulative - number).abs().amin(dim=-1) < 1e-6  # at a boundary rounding decides
        expected = order.gather(-1, (cumulative < number).sum(dim=-1, keepdim=True))[..., 0]
        found = nucleus_sample(golden["logits"], torch.tensor([float(top_p)]), torch.full((1, 40), number))
        assert torch.equal(found[~near], expected[~near])
