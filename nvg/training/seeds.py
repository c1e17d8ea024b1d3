"""Seeds of a training: every random draw is a function of (seed, step, slice), never of what was drawn before it."""

from __future__ import annotations

import hashlib

import torch


def draw_seed(*keys: int | str) -> int:
    """A seed of 63 bits that is a function of its keys and of nothing else."""
    digest = hashlib.blake2b(repr(keys).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def seeded(*keys: int | str) -> torch.Generator:
    """A random generator on the CPU, seeded by `draw_seed`."""
    return torch.Generator().manual_seed(draw_seed(*keys))


def seed_dropout(seed: int, device: torch.device) -> None:
    """Seed those of torch's global random generators that a step draws from.

    torch.manual_seed asks every kind of device for its generators, which takes fifty times as long.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
