"""The published sizes: d16 and its tokenizer with the recipe's weights compute the released system's numbers.

    python -m tests.campaigns.published

430 million random numbers are drawn, by the key tables of the published files. tests/release compares every part in
small, and tests/released the shapes of the published size.
"""

import sys

import pytest
import torch

from nvg.generator.structure import signed_bits
from nvg.released.generators import generators
from nvg.released.tokenizer import PREFIXES
from tests.release import ours, recipe

PUBLISHED_PARAMETERS = 110_118_051  # of encoder and decoder


def test_the_network_of_the_published_size_gives_the_released_latents_and_images():
    shapes = {key: shape for key, shape in recipe.keys_and_shapes("ae_checkpoint").items() if key.startswith(PREFIXES)}
    autoencoder = ours.autoencoder_of(recipe.weights(shapes))
    config = autoencoder.config
    assert config.widths == [128, 256, 512, 512, 512] and (config.blocks, config.decoder_blocks) == (2, 3)
    assert (config.image_size, config.grid, config.last_stage, config.codebook_size) == (256, 16, 8, 4096)
    layers = (autoencoder.encoder, autoencoder.decoder)
    assert sum(value.numel() for part in layers for value in part.parameters()) == PUBLISHED_PARAMETERS
    ours.check_autoencoder(autoencoder, "ae_published_size")


@pytest.fixture(scope="module")
def d16():
    shapes = recipe.keys_and_shapes("d16")
    unused = ("nvgformer.rope_ids", "nvgformer.scale_factors", "nvgformer.projector.")
    state = recipe.weights({key: shape for key, shape in shapes.items() if not key.startswith(unused)})
    state["nvgformer.scale_factors"] = recipe.golden("sequences_16")["scale_factors"]
    return generators({key.removeprefix("nvgformer."): value for key, value in state.items()}, grid=ours.GRID)


def test_the_published_generators_compute_the_released_numbers(d16):
    content_config, _, structure_config, _ = d16
    assert (content_config.depth, content_config.codebook_size, content_config.num_classes) == (16, 4096, 1000)
    assert structure_config.depth == 16
    content, structure = ours.built(d16)
    golden, label, one = recipe.golden("d16"), torch.tensor([207]), ours.sequences()[:1]
    canvases = ours.quantizer().canvases(one)
    with torch.no_grad():
        table, canvas = content.rotary(one.codes, 5), canvases[5]
        ((difference,), _) = content([canvas], one.codes, label, torch.tensor([5]), [table])
        torch.testing.assert_close(canvas + difference, golden["estimate"], rtol=0, atol=1e-5)
        logits = content.logits(difference, one.codes, 5)[:, :4]
        torch.testing.assert_close(logits, golden["logits"], rtol=0, atol=2e-4)
        known = golden["noisy"][..., :5]
        torch.testing.assert_close(known, signed_bits(one.codes, 5)[..., :5])
        arguments = ([golden["noisy"]], torch.tensor([[0.7]]), [canvases[6]], one.codes, label, torch.tensor([6]))
        (velocity,) = structure(*arguments, [structure.rotary(one.codes, 6)])
        torch.testing.assert_close(velocity, golden["velocity"], rtol=0, atol=3e-6)


if __name__ == "__main__":
    sys.exit(pytest.main([__file__]))
