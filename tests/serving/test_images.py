"""Uploaded pictures: read as training images are."""

import struct
import zlib

import numpy as np
import pytest

from nvg.serving.errors import RequestError
from nvg.serving.images import open_drawing, open_upload
from tests.support.pictures import encode, pixels

PNG = encode(pixels(0))


def with_text(*, sound, size):
    """A PNG with a compressed text of some bytes before its pixels."""
    data = b"zTXtk\0\0" + zlib.compress(bytes(size))
    checksum = zlib.crc32(data) ^ (not sound)
    chunk = struct.pack(">I", len(data) - 4) + data + struct.pack(">I", checksum)
    place = PNG.index(b"IDAT") - 4
    return PNG[:place] + chunk + PNG[place:]


@pytest.mark.parametrize(("sound", "size"), [(True, 2 * 2**20), (False, 10)])
def test_notes_of_an_upload_hurt_no_pixels(sound, size):
    data = with_text(sound=sound, size=size)
    picture = open_upload(data, channels=3, max_pixels=1000, field="image")
    assert np.array_equal(np.asarray(picture), pixels(0))
    drawing = open_drawing(data, max_pixels=1000, field="drawing")
    assert drawing.equal(open_drawing(PNG, max_pixels=1000, field="drawing"))


def test_damaged_pixels_and_large_pictures_are_refused_with_such_notes_too():
    data = bytearray(with_text(sound=False, size=10))
    with pytest.raises(RequestError, match="has 24 x 20 pixels, this server takes at most 100"):
        open_upload(bytes(data), channels=3, max_pixels=100, field="image")
    data[data.index(b"IDAT") + 10] ^= 1
    with pytest.raises(RequestError, match="image cannot be read: the PNG is damaged: the checksum of its IDAT chunk"):
        open_upload(bytes(data), channels=3, max_pixels=1000, field="image")
