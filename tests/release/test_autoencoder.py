"""Encoder and decoder against the released system's, with the recipe's weights, in a small network.

tests/campaigns/published.py has those of the published size.
"""

from tests.release import checkpoints
from tests.release.ours import autoencoder_of, check_autoencoder


def test_a_network_of_two_reductions_gives_the_released_latents_and_images():
    autoencoder = autoencoder_of(checkpoints.tokenizer())
    assert autoencoder.config.widths == [128, 256, 128] and autoencoder.config.decoder_blocks == 3
    check_autoencoder(autoencoder, "ae_wide")
