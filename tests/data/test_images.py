"""Decoding of awkward images, and views."""

import resource
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from nvg.data import BrokenImageError, decode_image, make_view
from nvg.data.images import image_size, to_float
from nvg.generator.batches import to_pixels
from tests.support.pictures import config, encode, frames, jpeg_of, pixels, png, ycck

RESIZES = ("antialiased", "lanczos8")


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "data",
    [
        encode(pixels(0)),
        encode(pixels(0), "JPEG"),
        encode(Image.fromarray(pixels(0)).convert("CMYK"), "JPEG"),
        encode(Image.fromarray(pixels(0)).convert("L"), "JPEG"),
        encode(Image.fromarray(pixels(0)).convert("P")),
        encode(Image.fromarray(pixels(0)).convert("LA")),
        encode(Image.fromarray(pixels(0)[:, :, 0].astype(np.uint16) * 257)),
        pixels(0),
        pixels(0)[:, :, 0],
        pixels(0)[:, :, :1],
    ],
    ids=["png", "jpeg", "cmyk", "grey", "palette", "grey-alpha", "16-bit", "array", "grey-array", "one-channel"],
)
def test_every_kind_of_image_becomes_grey_or_rgb_of_its_size(data, channels):
    image = decode_image(data, channels)
    assert image.mode == ("L" if channels == 1 else "RGB") and image.size == (24, 20)
    truth = np.asarray(Image.fromarray(pixels(0)).convert("L")).astype(int)
    if channels == 1 and not isinstance(data, np.ndarray) and data[:2] != b"\xff\xd8":
        assert np.asarray(image).std() > 10 and np.asarray(image).shape == truth.shape


def test_sixteen_bits_are_scaled_and_not_clipped():
    deep = np.array([[0, 257 * 100, 65535]], np.uint16)
    assert np.asarray(decode_image(encode(Image.fromarray(deep)), 1)).tolist() == [[0, 100, 255]]


def test_transparent_parts_become_white():
    rgba = np.zeros((2, 2, 4), np.uint8)
    rgba[0, 0] = (255, 0, 0, 255)
    assert np.asarray(decode_image(encode(rgba), 3)).tolist() == [
        [[255, 0, 0], [255, 255, 255]],
        [[255, 255, 255], [255, 255, 255]],
    ]


GOOD_PNG = encode(pixels(0))
ORANGE = (200, 80, 40)
PLAIN = Image.new("RGB", (16, 16), ORANGE)
PALETTE = Image.new("P", (16, 16), 1)
PALETTE.putpalette([0, 0, 0, *ORANGE])
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()


@pytest.mark.parametrize(
    ("data", "colour"),
    [
        (encode(PLAIN.convert("CMYK"), "JPEG", quality=95), ORANGE),  # Adobe's, inverted: as all of them are taken
        (ycck(ORANGE), ORANGE),
        (encode(PLAIN, "JPEG", quality=95, progressive=True), ORANGE),
        (encode(PLAIN, "JPEG", quality=95, keep_rgb=True), ORANGE),
        (encode(PLAIN, "JPEG", quality=95, icc_profile=PROFILE), ORANGE),
        (png((16, 16), 16, 0, struct.pack(">H", 200 * 257) * 16), (200, 200, 200)),
        (png((16, 16), 16, 2, struct.pack(">3H", *(257 * value for value in ORANGE)) * 16), ORANGE),
        (png((16, 16), 16, 4, struct.pack(">2H", 200 * 257, 65535) * 16), (200, 200, 200)),
        (png((16, 16), 16, 6, struct.pack(">4H", *(257 * value for value in ORANGE), 0) * 16), (255, 255, 255)),
        (png((16, 16), 1, 0, b"\xff\xff"), (255, 255, 255)),
        (encode(Image.fromarray(np.full((16, 16), 200 * 257, np.uint16)), "TIFF"), (200, 200, 200)),
        (encode(PLAIN.convert("LAB"), "TIFF"), ORANGE),
        (encode(PALETTE), ORANGE),
        (encode(PALETTE, transparency=1), (255, 255, 255)),
        (encode(PALETTE, transparency=bytes([255, 128])), (228, 167, 147)),
        (encode(PLAIN, transparency=ORANGE), (255, 255, 255)),
        (frames("GIF"), (255, 0, 0)),
        (frames("WEBP"), (255, 0, 0)),
        (frames("PNG"), (255, 0, 0)),
    ],
    ids=[
        "CMYK",
        "YCCK",
        "progressive",
        "RGB JPEG",
        "colour profile",
        "16-bit grey",
        "16-bit RGB",
        "16-bit grey-alpha",
        "16-bit alpha",
        "1-bit",
        "16-bit TIFF",
        "LAB",
        "palette",
        "palette, a colour clear",
        "palette, half clear",
        "a colour clear",
        "animated GIF",
        "animated WebP",
        "animated PNG",
    ],
)
def test_the_colours_of_odd_files_are_right(data, colour):
    found = np.asarray(decode_image(data, 3))
    assert found.shape == (16, 16, 3) and np.abs(found.astype(int) - colour).max() <= 4


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_rotation_is_undone(orientation):
    """A picture whose corners tell which way is up, as a camera would store it."""
    upright = np.zeros((32, 48, 3), np.uint8)
    upright[:16, :16], upright[:16, -16:] = (255, 0, 0), (0, 255, 0)
    stored = upright if orientation < 5 else upright.transpose(1, 0, 2)
    rows, columns = [(1, 1), (1, -1), (-1, -1), (-1, 1), (1, 1), (-1, 1), (-1, -1), (1, -1)][orientation - 1]
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(stored[::rows, ::columns])
    data = encode(stored, "JPEG", quality=95, subsampling=0, exif=exif.tobytes())
    assert np.abs(np.asarray(decode_image(data, 3)).astype(int) - upright).mean() < 2


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no image",
        encode(pixels(0), "JPEG")[:300],
        encode(pixels(0), "JPEG", progressive=True)[:-20],
        encode(pixels(0))[:-40],
        jpeg_of(24, 20, bits=12),
        encode(np.full((4, 4), 0.5, np.float32), "TIFF"),
    ],
    ids=["empty", "text", "cut JPEG", "cut progressive JPEG", "cut PNG", "12-bit JPEG", "float TIFF"],
)
def test_broken_bytes_are_named_as_broken(data):
    with pytest.raises(BrokenImageError, match="."):
        decode_image(data, 3)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    "data", [png((30000, 30000), 8, 2, bytes(90000)), png((12000, 12000), 8, 2, bytes(36000)), jpeg_of(65000, 65000)]
)
def test_an_image_of_huge_size_is_refused_by_its_header(data):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(BrokenImageError, match="too large"):
        decode_image(data, 3)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB; its pixels are 400 MB and more


def chunk(name, data, *, sound=True):
    """A PNG chunk, with a right checksum or a wrong one."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data) ^ (not sound))


def with_chunk(added, where, image=GOOD_PNG):
    """A PNG with a chunk before its pixels or after them."""
    place = image.index(b"IDAT") - 4 if where == "before" else len(image) - 12
    return image[:place] + added + image[place:]


ROOMY = zlib.compress(bytes(2 * 2**20))  # 2 MB in 2 kB: Pillow reads at most 1 MB
NOTES = {
    "zTXt of 2 MB": chunk(b"zTXt", b"k\0\0" + ROOMY),
    "zTXt of 100 MB": chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(100 * 2**20))),
    "many zTXt": b"".join(chunk(b"zTXt", b"k%d\0\0" % n + zlib.compress(bytes(2**20 - 1))) for n in range(70)),
    "iTXt of 2 MB": chunk(b"iTXt", b"k\0\1\0\0\0" + ROOMY),
    "tEXt of 2 MB": chunk(b"tEXt", b"k\0" + bytes(2 * 2**20)),
    "iCCP of 2 MB": chunk(b"iCCP", b"p\0\0" + ROOMY),
    "zTXt cut off": chunk(b"zTXt", b"k\0\0" + ROOMY[:50]),
    "iCCP of junk": chunk(b"iCCP", b"p\0\0junk"),
    "eXIf of junk": chunk(b"eXIf", b"II*\0junk"),
    "short pHYs": chunk(b"pHYs", b"abc"),
    "short gAMA": chunk(b"gAMA", b"a"),
    "empty sRGB": chunk(b"sRGB", b""),
    "short acTL": chunk(b"acTL", b"a"),
} | {
    f"flipped bit in {name}": chunk(name.encode(), b"k\0some text", sound=False)
    for name in ("tEXt", "zTXt", "iTXt", "iCCP", "eXIf", "tIME", "pHYs", "sBIT", "prVt")
}


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("where", ["before", "after"])
@pytest.mark.parametrize("note", NOTES)
def test_notes_of_a_png_hurt_no_pixels(note, where):
    data = with_chunk(NOTES[note], where)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert np.array_equal(np.asarray(decode_image(data, 3)), pixels(0)) and image_size(data) == (24, 20)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB: never 100 MB of notes


def test_a_png_with_a_damaged_note_keeps_its_rotation_and_its_transparency():
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encode(pixels(0), exif=exif.tobytes())
    bad = chunk(b"tEXt", b"k\0v", sound=False)
    assert np.array_equal(decode_image(with_chunk(bad, "before", turned), 3), decode_image(turned, 3))
    assert decode_image(turned, 3).size == (20, 24)
    clear = encode(PALETTE, transparency=bytes([255, 128]))
    assert np.array_equal(decode_image(with_chunk(bad, "before", clear), 3), decode_image(clear, 3))


@pytest.mark.parametrize("name", [b"IHDR", b"PLTE", b"tRNS", b"IDAT"])
@pytest.mark.parametrize("part", ["data", "checksum"])
def test_a_flipped_bit_in_the_pixels_is_broken(name, part):
    data = bytearray(encode(PALETTE, transparency=bytes([255, 128])))
    start = data.index(name)
    (length,) = struct.unpack_from(">I", data, start - 4)
    data[start + 4 + (length if part == "checksum" else length - 1)] ^= 1
    with pytest.raises(BrokenImageError, match=f"checksum of its {name.decode()} chunk is wrong"):
        decode_image(bytes(data), 3)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize(
    ("kind", "note"),
    [
        *[(kind, note) for kind in ("JPEG", "WEBP", "AVIF", "TIFF") for note in ("icc_profile", "xmp")],
        *[("JPEG", "exif"), ("WEBP", "exif"), ("JPEG", "comment"), ("GIF", "comment")],
    ],
)
@pytest.mark.parametrize("size", [100, 2 * 2**20])
def test_notes_of_other_formats_hurt_no_pixels(note, size, kind):
    """Profiles, EXIF, XMP and comments of junk, small ones and such as take many segments of a JPEG."""
    limit = {"exif": 65_000, "xmp": 65_000, "comment": 65_000} if kind == "JPEG" else {}
    junk = (b"Exif\0\0" if note == "exif" else b"") + b"junk" * (min(size, limit.get(note, size)) // 4)
    image = Image.fromarray(pixels(0))
    plain, noted = (encode(image, kind, **notes) for notes in ({}, {note: junk}))
    assert np.array_equal(decode_image(noted, 3), decode_image(plain, 3)) and image_size(noted) == (24, 20)


@pytest.mark.filterwarnings("ignore:Image appears to be a malformed MPO")
def test_a_jpeg_with_odd_segments_keeps_its_pixels():
    plain = encode(pixels(0), "JPEG")
    for marker in (0xE1, 0xE2, 0xED, 0xEE, 0xEF, 0xFE):
        for data in (b"", b"x", b"ICC_PROFILE\0\3\2junk", b"MPF\0junk", b"Photoshop 3.0\08BIM", b"x" * 65_000):
            segment = struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data
            assert np.array_equal(decode_image(plain[:2] + segment + plain[2:], 3), decode_image(plain, 3))


def test_a_decompression_bomb_is_refused(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(BrokenImageError, match="too large"):
        decode_image(encode(pixels(0)), 3)


@settings(deadline=None, max_examples=60)
@given(st.binary(max_size=200), st.integers(0, 400))
def test_bad_bytes_never_raise_anything_else(noise, cut):
    good = encode(pixels(0), "JPEG")
    for data in (noise, good[:cut] + noise, good[:cut] + noise + good[cut + len(noise) :]):
        try:
            assert decode_image(data, 3).mode == "RGB"
        except BrokenImageError as error:
            assert str(error)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(0, 3), st.floats(1, 2), st.sampled_from(RESIZES))
def test_a_view_is_square_whatever_the_image(width, height, view, scale, resize):
    image = Image.fromarray(np.full((height, width, 3), 77, np.uint8))
    found = make_view(image, config(crop_scale=scale, resize=resize), view, 0, "x")
    assert found.shape == (16, 16, 3) and (found == 77).all() and found.dtype == np.uint8


def test_view_0_is_the_centre_crop_of_the_resized_image():
    wide = np.zeros((16, 48, 3), np.uint8)
    wide[:, 16:32] = 255
    assert (make_view(Image.fromarray(wide), config(), 0, 0, "x") == 255).all()


@pytest.mark.parametrize("resize", RESIZES)
def test_random_views_follow_from_seed_image_and_view_alone(resize):
    image = Image.fromarray(pixels(3, (40, 40)))
    settings = config(crop_scale=1.5, resize=resize)
    base = make_view(image, settings, 1, 0, "a")
    assert np.array_equal(base, make_view(image, settings, 1, 0, "a"))
    for other in (
        make_view(image, settings, 2, 0, "a"),
        make_view(image, settings, 1, 1, "a"),
        make_view(image, settings, 1, 0, "b"),
    ):
        assert not np.array_equal(base, other)


@pytest.mark.parametrize("resize", RESIZES)
def test_half_of_the_random_views_are_mirrored_and_none_without_flip(resize):
    image = Image.fromarray(np.tile(np.arange(16, dtype=np.uint8)[None, :, None], (16, 1, 3)))
    mirrored = [make_view(image, config(resize=resize), 1, 0, str(number))[0, 0, 0] == 15 for number in range(200)]
    assert 70 < sum(mirrored) < 130
    assert not any(make_view(image, config(flip=False, resize=resize), 1, 0, str(n))[0, 0, 0] == 15 for n in range(20))


def test_pixels_go_to_floats_and_back_unchanged():
    images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    floats = to_float(images)
    assert floats.shape == (1, 1, 16, 16) and floats.min() == -1 and floats.max() == 1
    assert np.array_equal(to_pixels(floats), images)


@pytest.mark.parametrize("resize", RESIZES)
def test_a_long_and_thin_image_is_cropped_before_it_is_enlarged(resize):
    image = Image.fromarray(np.zeros((1, 60000, 3), np.uint8))
    for view in (0, 1):
        assert make_view(image, config(image_size=256, resize=resize), view, 0, "x").shape == (256, 256, 3)


def test_a_damaged_exif_block_hurts_no_pixels():
    data = encode(pixels(0), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xffjunk")
    assert decode_image(data, 3).size == (24, 20)
