"""NVG-d16 at its published size, 255 M and 64 M parameters with the recipe's weights, by the key table."""

import pytest
import torch

from nvg.generator.structure import signed_bits
from nvg.released.generators import generators
from tests.release import ours, recipe

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("rotation")]  # 320 M normal numbers


@pytest.fixture(scope="module")
def d16():
    shapes = recipe.keys_and_shapes("d16")
    unused = ("nvgformer.rope_ids", "nvgformer.scale_factors", "nvgformer.projector.")
    state = recipe.weights({key: shape for key, shape in shapes.items() if not key.startswith(unused)})
    state["nvgformer.scale_factors"] = recipe.golden("sequences_16")["scale_factors"]
    converted = generators({key.removeprefix("nvgformer."): value for key, value in state.items()}, grid=ours.GRID)
    return ours.built(converted)


def test_the_published_generators_compute_the_released_numbers(d16, canvases, sequences):
    content, structure = d16
    config = content.config
    assert (config.depth, config.codebook_size, config.num_classes) == (16, 4096, 1000)
    assert structure.config.depth == 16
    golden, label, one = recipe.golden("d16"), torch.tensor([207]), sequences[:1]
    with torch.no_grad():
        table, canvas = content.rotary(one.codes, 5), canvases[5, :1]
        ((difference,), _) = content([canvas], one.codes, label, torch.tensor([5]), [table])
        torch.testing.assert_close(canvas + difference, golden["estimate"], rtol=0, atol=1e-5)
        logits = content.logits(difference, one.codes, 5)[:, :4]
        torch.testing.assert_close(logits, golden["logits"], rtol=0, atol=2e-4)
        known = golden["noisy"][..., :5]
        torch.testing.assert_close(known, signed_bits(one.codes, 5)[..., :5])
        arguments = ([golden["noisy"]], torch.tensor([[0.7]]), [canvases[6, :1]], one.codes, label, torch.tensor([6]))
        (velocity,) = structure(*arguments, [structure.rotary(one.codes, 6)])
        torch.testing.assert_close(velocity, golden["velocity"], rtol=0, atol=3e-6)
