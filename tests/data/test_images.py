"""Decoding of awkward images, and views."""

import resource
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from nvg.data import BrokenImageError, decode_image, make_view
from nvg.data.images import to_float
from nvg.generator.sampler import to_pixels
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
