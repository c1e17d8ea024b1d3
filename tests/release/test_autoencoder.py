"""Encoder and decoder against the released system's, with the recipe's weights: a small network, the published size."""

import pytest
import torch

from nvg.autoencoder import Autoencoder
from nvg.released.tokenizer import PREFIXES, convert_tokenizer
from tests.release import checkpoints
from tests.release.recipe import golden, keys_and_shapes, weights

PUBLISHED_PARAMETERS = 110_118_051  # of encoder and decoder


def autoencoder_of(released):
    config, state = convert_tokenizer(released)
    with torch.device("meta"):
        autoencoder = Autoencoder(config)
    autoencoder.load_state_dict(state, assign=True)
    return autoencoder.eval()


@torch.no_grad()
def check(autoencoder, name):
    """Latents and decoded latents of golden images. They are smaller than the tokenizer's own: no matter for layers."""
    numbers = golden(name)
    latents = autoencoder.encoder(numbers["images"])
    torch.testing.assert_close(latents, numbers["latents"], rtol=0, atol=1e-5)
    decoded = autoencoder.decoder(numbers["latents"])
    torch.testing.assert_close(decoded, numbers["decoded_latents"], rtol=0, atol=1e-5)


def test_a_network_of_two_reductions_gives_the_released_latents_and_images():
    autoencoder = autoencoder_of(checkpoints.tokenizer())
    assert autoencoder.config.widths == [128, 256, 128] and autoencoder.config.decoder_blocks == 3
    check(autoencoder, "ae_wide")


@pytest.mark.slow  # 110 million random numbers
def test_the_network_of_the_published_size_gives_the_released_latents_and_images():
    shapes = {key: shape for key, shape in keys_and_shapes("ae_checkpoint").items() if key.startswith(PREFIXES)}
    autoencoder = autoencoder_of(weights(shapes))
    config = autoencoder.config
    assert config.widths == [128, 256, 512, 512, 512] and (config.blocks, config.decoder_blocks) == (2, 3)
    assert (config.image_size, config.grid, config.last_stage, config.codebook_size) == (256, 16, 8, 4096)
    layers = (autoencoder.encoder, autoencoder.decoder)
    assert sum(value.numel() for part in layers for value in part.parameters()) == PUBLISHED_PARAMETERS
    check(autoencoder, "ae_published_size")
