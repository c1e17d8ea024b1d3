"""Next visual granularity generation: images from coarse to fine structure, on a Ray cluster.

    sampler = nvg.load("fashion-mnist")  # or a folder, a URL, models:/NAME@champion
    images = sampler.generate(["Bag", 3], seed=0)

Importing this package imports nothing else: torch, Ray and the rest come with the first use of a name.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nvg.config import SamplerConfig
    from nvg.generator import Sampler

__version__ = "0.1.0"
__all__ = ["load", "sampler_folder"]

_MODULES = (
    "autoencoder", "config", "data", "evaluation", "generator", "granularity", "serving", "storage", "tracking",
    "training",
)
_ASSETS = Path(__file__).parent / "assets"


def load(name: str, settings: SamplerConfig | None = None) -> Sampler:
    """A sampler by name: one that ships with the package, a folder or URL with a sampler, or `models:/NAME@alias`.

    settings replace the sampling settings it was trained with. Raises ValueError, naming what there is, for a name
    that is none of these, and nvg.training.checkpoint.CheckpointError for a folder that cannot be used.
    """
    from nvg.training.checkpoint import load_sampler

    return load_sampler(sampler_folder(name), settings)


def sampler_folder(name: str) -> str:
    """The folder (path or URL) of a sampler's name, as for `load`. Raises ValueError for a name that is none."""
    from nvg import storage, tracking

    name = str(name)
    if name.startswith("models:/"):
        return tracking.registered_folder(name)
    if (_ASSETS / name / "metadata.json").is_file():
        return str(_ASSETS / name)
    if storage.is_url(name) or Path(name).is_dir():
        return name
    shipped = sorted(path.parent.name for path in _ASSETS.glob("*/metadata.json"))
    raise ValueError(
        f"no sampler {name!r}: neither a folder nor one of those that ship with nvg "
        f"({', '.join(shipped) or 'none'}): give a folder or URL that pipelines/train.py made, or "
        "models:/NAME@champion"
    )


if not TYPE_CHECKING:  # a type checker looks at the modules themselves

    def __getattr__(name: str) -> Any:
        if name in _MODULES:
            return importlib.import_module(f"nvg.{name}")
        raise AttributeError(f"module 'nvg' has no attribute {name!r}")
