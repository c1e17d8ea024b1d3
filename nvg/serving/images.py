"""Pictures in and out of HTTP: those that leave, PNGs with what made them, and uploads that cannot do harm."""

from __future__ import annotations

import base64
import io
import json
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, PngImagePlugin, UnidentifiedImageError
from torch import Tensor

from nvg.data.images import BrokenImageError, decode_image, image_size, load_image
from nvg.serving.errors import RequestError

TEXT_CHUNK = "nvg"
_DRAWING_SIDE = 1024  # a drawing is averaged down to the grid anyway


@dataclass(frozen=True)
class Output:
    """How pictures leave: each pixel repeated `scale` times, in a format."""

    scale: int = 1
    format: str = "png"  # png | jpeg | webp
    quality: int = 100  # of jpeg and webp


def encoded(pixels: np.ndarray, output: Output, made_by: dict[str, Any] | None = None) -> bytes:
    """Encode a picture, uint8 (H, W, C): the same input, the same bytes.

    made_by goes into the text chunk `nvg` of a PNG, as JSON; other formats hold none.
    """
    picture = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    if output.scale > 1:
        size = (picture.width * output.scale, picture.height * output.scale)
        picture = picture.resize(size, Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    if output.format == "png":
        text = PngImagePlugin.PngInfo()
        if made_by is not None:
            text.add_itxt(TEXT_CHUNK, json.dumps(made_by, sort_keys=True, ensure_ascii=False))
        picture.save(buffer, "PNG", pnginfo=text)
    elif output.format == "jpeg":
        picture.save(buffer, "JPEG", quality=max(1, output.quality), subsampling=0)  # to Pillow, 0 is its default
    else:
        picture.save(buffer, "WEBP", quality=output.quality)
    return buffer.getvalue()


def made_by(png: bytes) -> dict[str, Any]:
    """The text chunk of a PNG that nvg made: model, fingerprint, and the request that makes the picture again.

    Raises ValueError for a PNG without it.
    """
    with Image.open(io.BytesIO(png)) as picture:
        picture.load()
        text = getattr(picture, "text", {})
    if TEXT_CHUNK not in text:
        raise ValueError(f"the picture has no text chunk {TEXT_CHUNK!r}: nvg did not make it, or the text was removed")
    return json.loads(text[TEXT_CHUNK])


def base64_text(data: bytes) -> str:
    """Bytes in base64, as JSON carries them."""
    return base64.b64encode(data).decode()


def open_upload(data: bytes, *, channels: int, max_pixels: int, field: str) -> Image.Image:
    """Decode an uploaded picture as training images are decoded. Raises RequestError naming the field.

    The size is read from the header and checked before a pixel is decoded.
    """
    _check_size(data, max_pixels, field)
    try:
        return decode_image(data, channels)
    except BrokenImageError as error:
        raise RequestError(400, f"{field} cannot be read: {error}", param=field, code="invalid_image") from None


def open_drawing(data: bytes, *, max_pixels: int, field: str) -> Tensor:
    """An uploaded drawing: (1, H, W) in [0, 1]. Its alpha where it has some, else its brightness, makes the shape."""
    _check_size(data, max_pixels, field)
    try:
        alpha = load_image(data).convert("RGBA").getchannel("A")
        low, high = alpha.getextrema()
        grey = alpha if low != high else decode_image(data, 1)  # an even alpha draws nothing
    except Exception as error:  # Pillow's decoders raise nearly every type on bad bytes
        raise RequestError(400, f"{field} cannot be read: {error}", param=field, code="invalid_image") from None
    grey.thumbnail((_DRAWING_SIDE, _DRAWING_SIDE))
    return torch.from_numpy(np.asarray(grey, dtype=np.float32) / 255)[None]


def _check_size(data: bytes, max_pixels: int, field: str) -> None:
    """Raises RequestError for a picture of too many pixels, or whose header cannot be read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit here is narrower
            width, height = image_size(data)
    except Image.DecompressionBombError as error:
        raise RequestError(413, f"{field}: {error}", param=field, code="image_too_large") from None
    except UnidentifiedImageError:
        raise RequestError(400, f"{field} is no picture of a known format", param=field, code="invalid_image") from None
    except Exception as error:  # damaged headers
        raise RequestError(
            400, f"{field} cannot be read: {type(error).__name__}: {error}", param=field, code="invalid_image"
        ) from None
    if width * height > max_pixels:
        raise RequestError(
            413,
            f"{field} has {width} x {height} pixels, this server takes at most {max_pixels} in all",
            param=field,
            code="image_too_large",
        )
