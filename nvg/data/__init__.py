"""Images and tokens: sources of images, views, token Parquet, and the Ray Data streams over them."""

from nvg.data.images import BrokenImageError, decode_image, make_view
from nvg.data.records import BrokenImage, ImageRecord, ImageSource
from nvg.data.sources import open_source
from nvg.data.stream import image_batches, token_batches
from nvg.errors import DataError

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
