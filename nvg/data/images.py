"""From stored bytes to square pixel arrays: decoding, and views (resize, crop, flip)."""

from __future__ import annotations

import io
import math
import zlib
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from nvg.config import DataConfig
from nvg.data import png

Result = TypeVar("Result")
# The formats of the sources' files. Pillow knows many more, of which one runs a program (EPS) and few are ever tested.
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "BMP", "GIF", "TIFF", "PPM")


class BrokenImageError(ValueError):
    """Bytes that are no readable image; the message is the reason for the quarantine."""


def decode_image(data: bytes | np.ndarray, channels: int) -> Image.Image:
    """An upright grey (channels = 1) or RGB (3) image. Raises BrokenImageError.

    Notes that a PNG holds beside its pixels (texts, profiles) may be damaged or of any size: the pixels are read.
    EXIF rotation is applied, alpha is laid over white, CMYK and palettes are converted, 16 bits are scaled to 8. Of an
    animation the first frame is taken; colour profiles are not applied. An image of more pixels than Pillow's guard
    against decompression bombs allows (89 million) is broken, and takes no memory.
    """
    try:
        if isinstance(data, np.ndarray):
            image = Image.fromarray(data.squeeze(-1) if data.ndim == 3 and data.shape[2] == 1 else data)
        else:
            image = load_image(data)
        if image.mode == "F":
            raise BrokenImageError("pixels are floating-point numbers, of no known range")
        if image.mode.startswith("I"):  # 16-bit (or 32-bit holding 16-bit) grey: Pillow would clip it at 255
            image = Image.fromarray((np.asarray(image).astype(np.int64).clip(0, 65535) >> 8).astype(np.uint8))
        if "A" in image.getbands() or "transparency" in image.info:
            rgba = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
        return image.convert("L" if channels == 1 else "RGB")
    except BrokenImageError:
        raise
    except UnidentifiedImageError:
        raise BrokenImageError(f"not an image: none of {', '.join(FORMATS)}") from None
    except Image.DecompressionBombError as error:
        raise BrokenImageError(f"too large: {error}") from None
    except Exception as error:  # Pillow's decoders raise nearly every type on bad bytes; the reason is kept
        raise BrokenImageError(f"{type(error).__name__}: {error}") from None


def load_image(data: bytes) -> Image.Image:
    """An upright image as its file has it: any mode, any alpha. Raises BrokenImageError, or an error of Pillow's."""
    if png.is_png(data) and (chunk := png.damaged_chunk(data)):
        raise BrokenImageError(f"the PNG is damaged: the checksum of its {chunk} chunk is wrong")
    return _without_notes_if_need_be(_load, data)


def image_size(data: bytes) -> tuple[int, int]:
    """Width and height of an image by its header, without reading a pixel. Raises as `load_image` does."""
    return _without_notes_if_need_be(_size, data)


def _without_notes_if_need_be(read: Callable[[bytes], Result], data: bytes) -> Result:
    """What `read` makes of an image. Pillow refuses a PNG with a text of more than 1 MB or with a note that is damaged:
    then its pixels are read alone."""
    try:
        return read(data)
    except (BrokenImageError, Image.DecompressionBombError):
        raise
    except Exception:  # nearly every type on bad bytes
        if not png.is_png(data):
            raise
        return read(png.without_notes(data))


def _load(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    if image.width * image.height > (Image.MAX_IMAGE_PIXELS or math.inf):  # up to twice that Pillow only warns
        raise BrokenImageError(f"too large: {image.width} x {image.height} pixels")
    image.load()
    return _upright(image)


def _size(data: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        return image.size


def _upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF rotation. A damaged EXIF block is ignored: the pixels may be sound."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # Pillow's EXIF reader raises many types on bad bytes
        return image


def make_view(image: Image.Image, config: DataConfig, view: int, seed: int, image_id: str) -> np.ndarray:
    """A square view of an image, uint8 (S, S, C), S = image_size.

    View 0 is the centre, of the shorter side. The others resize the shorter side to S * U(1, crop_scale), crop
    somewhere and flip with probability 1/2; their random numbers follow from (seed, image_id, view), so a view is the
    same whenever and wherever it is made. With data.resize=lanczos8 every view, view 0 too, is a crop of the image
    whose shorter side is round(S * crop_scale).
    """
    size = config.image_size
    scale, across, down, mirror = 0.0, 0.5, 0.5, False
    if view > 0:
        rng = np.random.default_rng([seed, zlib.crc32(image_id.encode()), view])
        scale, across, down, flip = rng.random(4)
        mirror = config.flip and flip < 0.5
    if config.resize == "lanczos8":
        pixels = crop_of_lanczos8(np.asarray(image), round(size * config.crop_scale), size, across, down)
    else:
        pixels = _crop_antialiased(image, round(size * (1 + (config.crop_scale - 1) * scale)), size, across, down)
    if mirror:
        pixels = np.ascontiguousarray(pixels[:, ::-1])
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def _crop_antialiased(image: Image.Image, shorter: int, size: int, across: float, down: float) -> np.ndarray:
    """A square of `size` pixels a side, uint8 (S, S) or (S, S, 3), of the image whose shorter side is `shorter`.

    across, down: where the square lies, from 0 (left, top) to 1.
    """
    # The crop first, in pixels of the original: the same picture, and no giant on the way for a long and thin image.
    side = min(image.size) * size / shorter
    left, top = (image.width - side) * across, (image.height - side) * down
    box = (left, top, min(left + side, image.width), min(top + side, image.height))
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=box, reducing_gap=3.0), dtype=np.uint8)


def crop_of_lanczos8(pixels: np.ndarray, shorter: int, size: int, across: float, down: float) -> np.ndarray:
    """The same crop by the kernel of the released system's images (OpenCV's INTER_LANCZOS4): eight taps, whatever the
    scale, and no antialiasing. uint8 (H, W) or (H, W, C) -> uint8 (S, S) or (S, S, C), S = size.

    For figures that are compared with the published ones: the antialiased crop is the better picture. Sides become
    round(side * shorter / shorter side); only the pixels that the crop reads are touched.
    """
    sides, values = pixels.shape[:2], pixels
    for axis in sorted((0, 1), key=lambda axis: -sides[axis]):  # the longer one first: most pixels are never read
        side, place = sides[axis], (down, across)[axis]
        resized = round(side * shorter / min(sides))
        first = math.floor((resized - size) * place)
        index, weights = _lanczos8_taps(side, resized, first + np.arange(size))
        form = [size if k == axis else 1 for k in range(values.ndim)]
        values = sum(values.take(index[tap], axis) * weights[tap].reshape(form) for tap in range(8))
    return np.rint(values).clip(0, 255).astype(np.uint8)


def _lanczos8_taps(side: int, resized: int, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which of `side` pixels are read for some of `resized` ones, and their weights: (8, n) int and float32.

    Place k lies at (k + 1/2) side / resized - 1/2. The kernel is sinc(x) sinc(x / 4), normalised over the eight;
    borders are repeated.
    """
    centre = (places + 0.5) * (side / resized) - 0.5
    taps = np.floor(centre).astype(np.int64) + np.arange(-3, 5)[:, None]
    weights = np.sinc(taps - centre) * np.sinc((taps - centre) / 4)
    return taps.clip(0, side - 1), (weights / weights.sum(axis=0)).astype(np.float32)


def to_float(images: Tensor | np.ndarray) -> Tensor:
    """uint8 (N, H, W, C) -> float32 (N, C, H, W) in [-1, 1]."""
    return torch.as_tensor(images).permute(0, 3, 1, 2).float() / 127.5 - 1.0
