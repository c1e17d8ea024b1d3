"""The chunks of a PNG file: damage of the notes among them (texts, profiles, times) hurts no pixel."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

SIGNATURE = b"\x89PNG\r\n\x1a\n"
PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")  # the chunks that pixels are made of
ROTATION = b"eXIf"


def is_png(data: bytes) -> bool:
    """Whether the bytes begin as a PNG file does."""
    return data.startswith(SIGNATURE)


def damaged_chunk(data: bytes) -> str | None:
    """The name of the first chunk of pixels whose checksum is wrong; Pillow does not look at that of the pixels."""
    return next((kind.decode() for kind, _, sound in _chunks(data) if kind in PIXELS and not sound), None)


def without_notes(data: bytes) -> bytes:
    """The file with the chunks of its pixels and, where it is sound, its EXIF rotation alone."""
    kept = (chunk for kind, chunk, sound in _chunks(data) if kind in PIXELS or (kind == ROTATION and sound))
    return SIGNATURE + b"".join(kept)


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes, bool]]:
    """(name, the whole chunk, whether its checksum is right) of the chunks up to the end, or to where the file is cut
    off: what is left there comes as it is."""
    start = len(SIGNATURE)
    while start + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, start)
        stop = start + 12 + length
        chunk = data[start:stop]
        if len(chunk) < 12 + length:
            yield kind, chunk, True
            return
        yield kind, chunk, zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], "big")
        if kind == b"IEND":
            return
        start = stop
