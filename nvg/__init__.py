"""Next visual granularity generation: images from coarse to fine structure, on a Ray cluster.

    sampler = nvg.load("fashion-mnist")  # or a folder, a URL, models:/NAME@champion
    images = sampler.generate(["Bag", 3], seed=0)

Importing this package imports nothing else: torch, Ray and the rest come with the first use of a name.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nvg.config import SamplerConfig
    from nvg.generator import Sampler

__version__ = "0.1.0"
__all__ = ["load"]

_MODULES = (
    "artifacts",
    "autoencoder",
    "cluster",
    "config",
    "data",
    "errors",
    "evaluation",
    "frozen",
    "generator",
    "granularity",
    "pictures",
    "serving",
    "storage",
    "tracking",
    "training",
)


def load(name: str, settings: SamplerConfig | None = None) -> Sampler:
    """A sampler by name: one that ships with the package, a folder or URL with a sampler (`hf://ORG/NAME@revision` is
    one of the Hugging Face hub), or `models:/NAME@alias`.

    settings replace the sampling settings it was trained with. Raises ValueError, naming what there is, for a name
    that is none of these, and nvg.errors.CheckpointError for a folder that cannot be used.
    """
    from nvg.artifacts.models import load_sampler, sampler_folder

    return load_sampler(sampler_folder(name), settings)


if not TYPE_CHECKING:  # a type checker looks at the modules themselves

    def __getattr__(name: str) -> Any:
        if name in _MODULES:
            return importlib.import_module(f"nvg.{name}")
        raise AttributeError(f"module 'nvg' has no attribute {name!r}")
