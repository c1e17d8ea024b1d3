"""VAR by its official code: its own sampler (KV cache, guidance, decoder), decoder, and a training step.

The code is the user's: a checkout of FoundationVision/VAR (MIT). What is used of it: `models.build_vae_var`,
`VAR.autoregressive_infer_cfg`, `VAR.forward`, `VQVAE.fhat_to_img`. Weights are random, since no figure here depends on
them. It runs eager under bfloat16 autocast, as its demo does with float16.

A training step is VAR's own (trainer.py there: mean cross-entropy, clipping to 2, fused AdamW) without its tokenizer,
which it runs in every step: ours reads tokens that were built beforehand.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.device.clock import Work, free
from benchmarks.device.ours import Setup, fitting
from nvg.describe import flops
from nvg.errors import ConfigError

DEPTH = 16
SAMPLING = {"cfg": 1.5, "top_k": 900, "top_p": 0.96}  # its README's, for evaluation
BATCH = 64  # of a training step, as it was measured on one H200 (docs/reports/gpu.md)
SAMPLED = TRAINED = "VAR-d16"


def works(setup: Setup) -> Iterator[Work]:
    """Sampling at every batch, the decoder at the largest, a training step."""
    assert setup.var is not None
    decoder, network = load(setup.var, setup.device)
    yield from sampling(setup, network)
    yield from decoding(setup, decoder, network)
    free(setup.device)
    counts = [count for count in setup.micro_batches if count <= BATCH]
    images, step = fitting(counts, setup.device, lambda count: training_step(network, count, setup.device))
    yield Work("training", TRAINED, images, step, 3 * forward_flops(network, setup.device))


def sampling(setup: Setup, network: Any) -> Iterator[Work]:
    """Its own sampler at every batch."""

    def sample(images: int) -> None:
        labels = torch.arange(images, device=setup.device) % network.num_classes
        with torch.inference_mode(), autocast(setup.device):
            network.autoregressive_infer_cfg(B=images, label_B=labels, **SAMPLING)

    network.eval()
    per_image = flops(lambda: sample(1))
    for images in setup.batches:
        yield Work("sampling", SAMPLED, images, partial(sample, images), per_image)


def decoding(setup: Setup, decoder: Any, network: Any) -> Iterator[Work]:
    """Its decoder alone, at the largest batch."""
    images, side = setup.batches[-1], network.patch_nums[-1]
    canvas = torch.randn(images, network.Cvae, side, side, device=setup.device)

    def decode(images: int) -> None:
        with torch.inference_mode(), autocast(setup.device):
            decoder.fhat_to_img(canvas[:images])

    yield Work("decoder", SAMPLED, images, partial(decode, images), flops(lambda: decode(1)))


def load(folder: Path, device: torch.device) -> tuple[Any, Any]:
    """The tokenizer and the transformer of a checkout, with random weights. Raises ConfigError where the folder is no
    checkout, ImportError where a package that it imports is missing."""
    if not (folder / "models" / "var.py").exists():
        raise ConfigError(f"--var {folder} has no models/var.py: give a checkout of FoundationVision/VAR")
    with contextlib.redirect_stdout(sys.stderr), resets_kept(), imported(folder) as models:
        decoder, network = models.build_vae_var(device=device, depth=DEPTH)
    with torch.no_grad():
        for parameter in decoder.parameters():  # memory as it was found: build_vae_var leaves them to a checkpoint
            if parameter.ndim > 1:
                parameter.normal_(std=1 / math.sqrt(parameter[0].numel()))
            else:
                parameter.fill_(0.5)
    return decoder, network


@contextlib.contextmanager
def imported(folder: Path) -> Iterator[Any]:
    """The checkout's package `models`, whose modules find each other by their names within the block; afterwards these
    are free again."""

    def present() -> list[str]:
        return [name for name in sys.modules if name.partition(".")[0] in ("dist", "models")]

    if taken := present():
        raise ConfigError(f"--var: {', '.join(taken)} is imported already, from elsewhere")
    try:
        executed("dist", folder / "dist.py")
        yield executed("models", folder / "models" / "__init__.py", package=True)
    finally:
        for name in present():
            del sys.modules[name]


def executed(name: str, path: Path, *, package: bool = False) -> Any:
    """Import a file as the module of this name."""
    inside = [str(path.parent)] if package else None
    spec = importlib.util.spec_from_file_location(name, path, submodule_search_locations=inside)
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def resets_kept() -> Iterator[None]:
    """Put back the initialization of torch's layers, which build_vae_var takes away from all of them for good."""
    name = "reset_parameters"
    layers = [layer for layer in vars(nn).values() if isinstance(layer, type) and hasattr(layer, name)]
    before = {layer: vars(layer).get(name) for layer in layers}
    try:
        yield
    finally:
        for layer, reset in before.items():
            if reset is not None:
                setattr(layer, name, reset)
            elif name in vars(layer):
                delattr(layer, name)


def autocast(device: torch.device) -> torch.autocast:
    """bfloat16, as VAR is run."""
    return torch.autocast(device.type, torch.bfloat16)


def training_step(network: Any, images: int, device: torch.device) -> Callable[[], object]:
    """A step of VAR's training on random tokens, all scales of every image."""
    network.train()
    labels = torch.randint(network.num_classes, (images,), device=device)
    inputs = torch.randn(images, network.L - network.first_l, network.Cvae, device=device)
    targets = torch.randint(network.V, (images, network.L), device=device)
    parameters = list(network.parameters())
    optimizer = torch.optim.AdamW(parameters, 1e-4, (0.9, 0.95), weight_decay=0.05, fused=True)

    def step() -> None:
        with autocast(device):
            logits = network(labels, inputs)
            loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 2.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


@torch.no_grad()
def forward_flops(network: Any, device: torch.device) -> int:
    """Operations of a forward pass of one image's tokens."""
    labels = torch.zeros(1, dtype=torch.int64, device=device)
    inputs = torch.zeros(1, network.L - network.first_l, network.Cvae, device=device)
    with autocast(device):
        return flops(lambda: network(labels, inputs))
