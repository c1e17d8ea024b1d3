"""Streams of toy images and of the tokens that an untrained toy tokenizer makes of them, batch by batch."""

import torch

from nvg.autoencoder import Autoencoder
from nvg.training.seeds import seeded

CPU = torch.device("cpu")
CLASSES = ["cat", "dog"]
QUICK = {"warmup_steps": 2, "lr": 3e-3, "batch_size": 8}


def images(step):
    """Smooth images, for noise cannot be learnt."""
    generator = seeded("images", step)
    small = torch.rand(8, 2, 2, 1, generator=generator)
    return (small.repeat_interleave(4, 1).repeat_interleave(4, 2) * 255).to(torch.uint8)


def image_stream(stop_at=None):
    def batches(step):
        while True:
            if step == stop_at:
                raise InterruptedError
            yield {"images": images(step)}
            step += 1

    return batches


def token_stream(autoencoder, stop_at=None, features=None):
    def batches(step):
        while True:
            if step == stop_at:
                raise InterruptedError
            sequence = autoencoder.encode(images(step).permute(0, 3, 1, 2).float() / 127.5 - 1)
            batch = {"codes": sequence.codes, "content": sequence.flat_content(), "labels": torch.arange(8) % 2}
            if features is not None:
                batch["features"] = torch.randn(8, 16, features, generator=seeded("features", step))
            yield batch
            step += 1

    return batches


def autoencoder_of(config):
    torch.manual_seed(0)
    return Autoencoder(config.tokenizer).eval().requires_grad_(False)
