"""torch.compile for the sampler: static shapes, and code that the next process finds on disk."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

CACHE = "TORCHINDUCTOR_CACHE_DIR"  # torch's own variable


def cache_folder() -> Path:
    """Where compiled code is kept, for this process and later ones: $TORCHINDUCTOR_CACHE_DIR, or ~/.cache/nvg/compiled,
    since torch's own choice below /tmp ends with a container."""
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    own = str(Path.home() / ".cache" / "nvg" / "compiled")
    if os.environ.get(CACHE, default_cache_dir()) == default_cache_dir():  # which torch writes there as it is imported
        os.environ[CACHE] = own
    return Path(os.environ[CACHE])


def compiled(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """The function under torch.compile, with code of its own for every shape. options: of torch.compile."""
    # torch gives up on a function after 8 shapes, and a batch size has one a stage.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 256)
    result: Callable[..., Any] = torch.compile(function, dynamic=False, **options)
    return result
