"""Picture grids of samples, stages and reconstructions, and films of stages. NumPy and Pillow alone.

Images are uint8 (N, H, W, C) arrays or tensors, C = 1 or 3. Small ones are enlarged by whole factors without smoothing,
so that a picture shows the pixels that were made.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from nvg.granularity import last_stage

MARGIN = 16  # pixels around a picture
GAP = 4  # between tiles
BLOCK_GAP = 16  # between rows that belong to different images
BACKGROUND = (255, 255, 255)
INK = (34, 34, 34)
FAINT = (118, 118, 118)
SAMPLE_SIDES = (96, 160)  # a tile's least and greatest side in pixels
STAGE_SIDES = (96, 128)
RECONSTRUCTION_SIDES = (96, 256)
MAXIMUM_CLASSES = 10  # rows of a sample grid
LABEL_WIDTH = 200  # pixels, at most, of a name beside its row
FRAME_MS, LAST_FRAME_MS = 700, 2500  # how long a film shows a stage, and the finished images


# ---- the three pictures ----


def sample_grid(
    images: Any, labels: Any, class_names: Sequence[str], columns: int = 10, *, maximum_classes: int = MAXIMUM_CLASSES
) -> Image.Image:
    """samples.png: one row per class with its name on the left, at most `columns` images of it.

    images: uint8 (N, H, W, C); labels: (N,) indices into class_names. Of more than `maximum_classes` classes an evenly
    spaced selection is shown. Raises ValueError on shapes that do not fit or a label without a name.
    """
    pixels = _pixels(images)
    index = np.asarray(labels).reshape(-1)
    if len(index) != len(pixels):
        raise ValueError(f"{len(pixels)} images and {len(index)} labels")
    if index.min() < 0 or index.max() >= len(class_names):
        raise ValueError(f"labels {index.min()} ... {index.max()} do not fit {len(class_names)} class names")
    classes = np.unique(index)
    if len(classes) > maximum_classes:
        classes = classes[np.linspace(0, len(classes) - 1, maximum_classes).round().astype(int)]
    rows = [
        TileRow([tile(image, SAMPLE_SIDES) for image in pixels[index == number][:columns]], class_names[number])
        for number in classes.tolist()
    ]
    return compose(rows)


def stages_picture(
    codes: Any, previews: Sequence[Any], labels: Any = None, class_names: Sequence[str] | None = None
) -> Image.Image:
    """stages.png: each image's structure maps and, under them, its previews, coarse to fine.

    codes: (N, L) structure codes, L = 2^K positions of a square grid; previews: K + 1 uint8 (N, H, W, C), entry i the
    image decoded from stages 0 ... i. labels and class_names, when given, name the rows. Raises ValueError when the
    counts do not fit.
    """
    code_array, pixels = _stages(codes, previews)
    names = [""] * len(code_array)
    if labels is not None and class_names is not None:
        names = [class_names[number] for number in np.asarray(labels).reshape(-1).tolist()]
        if len(names) != len(code_array):
            raise ValueError(f"codes of {len(code_array)} images, {len(names)} labels")
    rows = []
    for number, name in enumerate(names):
        decoded = [tile(stage[number], STAGE_SIDES) for stage in pixels]
        maps = [map_tile(code_array[number], stage, decoded[0].size) for stage in range(len(pixels))]
        rows.append(TileRow(maps, name, note="structure" if number == 0 else "", begins_block=number > 0))
        rows.append(TileRow(decoded, "", note="preview" if number == 0 else ""))
    headings = [(f"stage {stage}", _count(2**stage, "token")) for stage in range(len(pixels))]
    return compose(rows, headings)


def reconstruction_picture(originals: Any, reconstructions: Any, columns: int = 10) -> Image.Image:
    """reconstruction.png: originals over their reconstructions, in bands of `columns` images.

    Both uint8 (N, H, W, C) of one shape. Raises ValueError when the shapes differ.
    """
    above, below = _pixels(originals), _pixels(reconstructions)
    if above.shape != below.shape:
        raise ValueError(f"originals {above.shape} and reconstructions {below.shape} differ")
    rows = []
    for start in range(0, len(above), columns):
        for pixels, name in ((above, "original"), (below, "reconstruction")):
            tiles = [tile(image, RECONSTRUCTION_SIDES) for image in pixels[start : start + columns]]
            rows.append(TileRow(tiles, name, begins_block=name == "original" and start > 0))
    return compose(rows)


# ---- films ----


def stages_film(codes: Any, previews: Sequence[Any], labels: Any, class_names: Sequence[str]) -> list[Image.Image]:
    """The frames of a film, one per stage from coarse to fine, of one size.

    Each class has a column, each of its images a structure map over a preview. codes and previews: as in
    `stages_picture`; labels: (N,) indices into class_names, each equally often. Raises ValueError when the counts do
    not fit.
    """
    code_array, pixels = _stages(codes, previews)
    index = np.asarray(labels).reshape(-1)
    if len(index) != len(code_array):
        raise ValueError(f"codes of {len(code_array)} images, {len(index)} labels")
    columns = [np.flatnonzero(index == number) for number in dict.fromkeys(index.tolist())]
    if len({len(column) for column in columns}) > 1:
        raise ValueError(f"{[len(column) for column in columns]} images of the classes: a film shows as many of each")
    headings = [(class_names[index[column[0]]], "") for column in columns]
    frames = []
    for stage, decoded in enumerate(pixels):
        rows: list[TileRow] = []
        for images in zip(*columns, strict=True):  # one of each class
            below = [tile(decoded[number], STAGE_SIDES) for number in images]
            maps = [map_tile(code_array[number], stage, below[0].size) for number in images]
            rows.append(TileRow(maps, "structure", note=f"stage {stage}", begins_block=bool(rows)))
            rows.append(TileRow(below, "preview"))
        frames.append(compose(rows, headings))
    return frames


def film(frames: Sequence[Image.Image]) -> bytes:
    """An animated WebP that repeats: every frame FRAME_MS, the last one LAST_FRAME_MS. Keeps each pixel as it is."""
    buffer = io.BytesIO()
    durations = [FRAME_MS] * (len(frames) - 1) + [LAST_FRAME_MS]
    first, *others = frames
    first.save(buffer, "WEBP", save_all=True, append_images=others, duration=durations, loop=0, lossless=True)
    return buffer.getvalue()


# ---- the palette of structure maps ----


def cluster_colours(stage: int) -> np.ndarray:
    """Colours of the 2^stage clusters of a stage: (2^stage, 3) uint8.

    A child is a shade of its parent: every split moves the two halves apart from the parent's colour in OKLab, along
    blue-yellow, then green-red, then lightness, and by less and less, so colours nest as clusters do.
    """
    axes = ((0.0, 0.03, 0.12), (0.02, 0.075, 0.0), (0.1, 0.0, 0.0))  # (lightness, a, b), the first three splits
    clusters = np.arange(2**stage)
    colour = np.tile(np.array([0.68, 0.0, 0.0]), (2**stage, 1))
    for split in range(stage):
        bit = (clusters >> (stage - 1 - split)) & 1
        step = np.array(axes[split % 3]) * 0.45 ** (split // 3)
        colour += (2 * bit - 1)[:, None] * step
    return _oklab_to_srgb(colour)


def _oklab_to_srgb(colour: np.ndarray) -> np.ndarray:
    """OKLab (n, 3) -> sRGB (n, 3) uint8, out-of-range values clipped (Ottosson, "A perceptual color space", 2020)."""
    to_lms = np.array(
        [
            [1.0, 0.3963377774, 0.2158037573],
            [1.0, -0.1055613458, -0.0638541728],
            [1.0, -0.0894841775, -1.2914855480],
        ]
    )
    to_rgb = np.array(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.7076147010],
        ]
    )
    linear = ((colour @ to_lms.T) ** 3 @ to_rgb.T).clip(0.0, 1.0)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return (encoded * 255).round().astype(np.uint8)


def map_tile(codes: np.ndarray, stage: int, size: tuple[int, int]) -> Image.Image:
    """One image's structure map of a stage, (L,) codes, as a picture of `size` (width, height)."""
    splits = last_stage(len(codes))
    rows = 2 ** (splits // 2)
    colours = cluster_colours(stage)[codes >> (splits - stage)]
    return Image.fromarray(colours.reshape(rows, -1, 3)).resize(size, Image.Resampling.NEAREST)


# ---- tiles and layout ----


@dataclass
class TileRow:
    """One line of tiles of a picture."""

    tiles: list[Image.Image]
    name: str  # on its left
    note: str = ""  # under the name, fainter
    begins_block: bool = False  # a wider gap above


def _pixels(images: Any) -> np.ndarray:
    """(N, H, W, C) as a uint8 array with 3 channels. Raises ValueError on another type or shape, or none at all."""
    pixels = np.asarray(images)
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] not in (1, 3) or len(pixels) == 0:
        raise ValueError(f"expected uint8 images (N, H, W, 1 or 3), N at least 1, got {pixels.dtype} {pixels.shape}")
    return np.repeat(pixels, 3, axis=3) if pixels.shape[3] == 1 else pixels


def _stages(codes: Any, previews: Sequence[Any]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Structure codes (N, L) and the previews of all K + 1 stages with 3 channels. Raises ValueError when the counts do
    not fit."""
    code_array = np.asarray(codes)
    stage_count = last_stage(code_array.shape[1]) + 1
    if len(previews) != stage_count:
        raise ValueError(f"{len(previews)} previews for {stage_count} stages")
    pixels = [_pixels(preview) for preview in previews]
    if any(len(stage) != len(code_array) for stage in pixels):
        raise ValueError(f"codes of {len(code_array)} images, previews of {[len(stage) for stage in pixels]}")
    return code_array, pixels


def tile(image: np.ndarray, sides: tuple[int, int]) -> Image.Image:
    """One image (H, W, 3) with its longer side in about `sides`: enlarged by a whole factor, or smoothly reduced."""
    least, greatest = sides
    height, width = image.shape[:2]
    side = max(height, width)
    picture = Image.fromarray(image)
    if side < least:
        factor = -(-least // side)
        return picture.resize((width * factor, height * factor), Image.Resampling.NEAREST)
    if side > greatest:
        size = (max(1, round(width * greatest / side)), max(1, round(height * greatest / side)))
        return picture.resize(size, Image.Resampling.LANCZOS)
    return picture


def compose(rows: list[TileRow], headings: Sequence[tuple[str, str]] = ()) -> Image.Image:
    """Rows of equal tiles with names on the left and two-line headings over the columns."""
    font, small = ImageFont.load_default(16), ImageFont.load_default(13)
    width, height = rows[0].tiles[0].size
    names = [(_fit(row.name, font), _fit(row.note, small)) for row in rows]
    label = max(max(font.getlength(name), small.getlength(note)) for name, note in names)
    left = MARGIN + (int(label) + 12 if label else 0)
    top = MARGIN + (44 if any(subtitle for _, subtitle in headings) else 24 if headings else 0)
    columns = max(len(row.tiles) for row in rows)
    total = top + sum(height + GAP + (BLOCK_GAP if row.begins_block else 0) for row in rows) - GAP + MARGIN
    canvas = Image.new("RGB", (left + columns * (width + GAP) - GAP + MARGIN, total), BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    for column, (title, subtitle) in enumerate(headings):
        centre = left + column * (width + GAP) + width / 2
        draw.text((centre, MARGIN), _fit(title, font, width), INK, font, anchor="mt")
        draw.text((centre, MARGIN + 20), _fit(subtitle, small, width), FAINT, small, anchor="mt")
    y = top
    for row, (name, note) in zip(rows, names, strict=True):
        y += BLOCK_GAP if row.begins_block else 0
        middle = y + height / 2
        draw.text((left - 12, middle - (9 if note and name else 0)), name, INK, font, anchor="rm")
        draw.text((left - 12, middle + (11 if note and name else 0)), note, FAINT, small, anchor="rm")
        for column, picture in enumerate(row.tiles):
            canvas.paste(picture, (left + column * (width + GAP), y))
        y += height + GAP
    return canvas


def _fit(text: str, font: Any, width: int = LABEL_WIDTH) -> str:
    """The text; if wider than `width` pixels, cut at its first comma ("tench, Tinca tinca") or with an ellipsis."""
    text = " ".join(text.split())
    if font.getlength(text) > width:
        text = text.split(", ")[0]
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text.rstrip(" ,") + "..."


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"
