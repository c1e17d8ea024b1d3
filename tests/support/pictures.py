"""Made image files of every awkward kind, and the layouts that sources read."""

import gzip
import io
import json
import struct
import tarfile
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from nvg.config import DataConfig


def pixels(number, size=(20, 24)):
    return np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)


def encode(image, kind="PNG", **options):
    buffer = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(buffer, kind, **options)
    return buffer.getvalue()


def png(size, depth, kind, row):
    """A PNG of a kind that Pillow does not write: bits a sample, colour type, the bytes of each row."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", *size, depth, kind, 0, 0, 0)
    data = zlib.compress((b"\0" + row) * min(size[1], 16))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def ycck(colour, size=(16, 16)):
    """A JPEG of four components of which the Adobe marker says that they are luminance, two differences and black."""
    inverse = Image.new("RGB", size, tuple(255 - value for value in colour)).convert("YCbCr")
    planes = [band.point(lambda value: 255 - value) for band in inverse.split()]
    data = bytearray(encode(Image.merge("CMYK", [*planes, Image.new("L", size, 0)]), "JPEG", quality=95))
    data[data.find(b"Adobe") + 11] = 2
    return bytes(data)


def jpeg_of(width, height, bits=8):
    """A JPEG whose frame header says another size or depth than its data have."""
    data = bytearray(encode(pixels(0), "JPEG"))
    frame = data.find(b"\xff\xc0") + 4
    data[frame : frame + 5] = struct.pack(">BHH", bits, height, width)
    return bytes(data)


def frames(kind, colours=("red", "blue")):
    first, *others = (Image.new("RGB", (16, 16), colour) for colour in colours)
    return encode(first, kind, save_all=True, append_images=others)


def config(**changes):
    return DataConfig(**(dict(source="folder", train="", image_size=16, num_classes=3, unit_images=4) | changes))


def write_folder(root, classes=("ant", "bee", "cow"), each=3):
    for label, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for index in range(each):
            (root / name / f"{index}.png").write_bytes(encode(pixels(10 * label + index)))
    return str(root)


def write_parquet(path, count=7, classes=3, names=None, text=False, group=3):
    labels = [f"class {number % classes}" if text else number % classes for number in range(count)]
    schema = pa.schema(
        [
            ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            ("label", pa.string() if text else pa.int64()),
        ]
    )
    if names is not None:
        features = {"label": {"names": names, "_type": "ClassLabel"}}
        schema = schema.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    rows = [{"bytes": encode(pixels(number)), "path": f"{number}.png"} for number in range(count)]
    pq.write_table(
        pa.table([pa.array(rows, schema.field("image").type), pa.array(labels)], schema=schema),
        path,
        row_group_size=group,
    )
    return str(path)


def write_tar(path, members):
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return str(path)


def write_idx(folder, images, labels, prefix="train"):
    folder.mkdir(parents=True, exist_ok=True)
    head = struct.pack(">BBBBIII", 0, 0, 8, 3, *images.shape)
    (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(head + images.tobytes()))
    head = struct.pack(">BBBBI", 0, 0, 8, 1, len(labels))
    (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(head + bytes(labels)))
    return str(folder / f"{prefix}-images-idx3-ubyte.gz")
