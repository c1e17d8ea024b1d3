"""DiT-XL/2 at 256x256 by the pipeline of diffusers, with guidance and the decoder of Stable Diffusion, in bfloat16
autocast. 50 steps; published figures are of 250, which take five times as long."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial

import torch

from benchmarks import peers
from benchmarks.device.clock import Work
from benchmarks.device.ours import Setup
from nvg.describe import flops


def works(setup: Setup) -> Iterator[Work]:
    """Sampling at every batch."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is fetched: sizes are written there, weights are random
    steps = 50 if setup.full else 2
    peer = peers.dit("full" if setup.full else "smoke")
    peer.network.to(setup.device)
    peer.decoder.to(setup.device)

    def sample(images: int, steps: int) -> object:
        with torch.autocast(setup.device.type, torch.bfloat16):
            return peer.sample(images, steps)

    one, two = flops(lambda: sample(1, 1)), flops(lambda: sample(1, 2))
    per_image = one + (steps - 1) * (two - one)
    for images in setup.batches:
        call = partial(sample, images, steps)
        yield Work("sampling", f"DiT-XL/2, {steps} steps", images, call, per_image, warmups=1, profiled=False)
