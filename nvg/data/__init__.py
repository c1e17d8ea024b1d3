"""Images and tokens: sources of images, views, token Parquet, and the Ray Data streams over them.

Sources and streams import PyArrow, and come with the first use of their names: drawing and serving need images alone.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from nvg.data.images import BrokenImageError, decode_image, make_view
from nvg.data.records import BrokenImage, ImageRecord, ImageSource
from nvg.errors import DataError

if TYPE_CHECKING:
    from nvg.data.sources import open_source
    from nvg.data.stream import image_batches, token_batches

__all__ = [
    "BrokenImage",
    "BrokenImageError",
    "DataError",
    "ImageRecord",
    "ImageSource",
    "decode_image",
    "image_batches",
    "make_view",
    "open_source",
    "token_batches",
]

_LATER = {"open_source": "nvg.data.sources", "image_batches": "nvg.data.stream", "token_batches": "nvg.data.stream"}


if not TYPE_CHECKING:  # a type checker looks at the modules themselves

    def __getattr__(name: str) -> Any:
        if name in _LATER:
            return getattr(importlib.import_module(_LATER[name]), name)
        raise AttributeError(f"module 'nvg.data' has no attribute {name!r}")
