"""Mutated files into every reader: a reader gives a value or one of its own errors, whatever the bytes.

    python -m tests.campaigns.fuzz --minutes 60 [--seed 0] [--only image,parquet] [--out runs/fuzz]

Each target runs in turns of some seconds in a child process of its own, so that a crash of native code is seen. A
finding is any other exception, a death by signal, more than 10 s of computing, two minutes of waiting twice, or 2 GB
more memory than before; its bytes and its reason are kept in --out. An input follows from (seed, target, turn, number).
Mutations are our own and not coverage-guided: the decoders are native code that Python's coverage does not see, and the
formats with text in them (YAML, JSON, the headers of safetensors and Parquet) want changes of structure, which bytes
alone seldom make.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import io
import json
import os
import random
import resource
import shutil
import signal
import struct
import sys
import tarfile
import tempfile
import time
import traceback
import warnings
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from PIL import Image
from safetensors.torch import save

import tests.support.toy_config as toy
from nvg import config as configuration
from nvg.artifacts import models
from nvg.artifacts.files import checksum
from nvg.autoencoder import Autoencoder
from nvg.data import BrokenImageError, decode_image, make_view, open_source
from nvg.data import tokens as token_parts
from nvg.data.sources.tar import read_members
from nvg.data.stream import read_pieces
from nvg.errors import CheckpointError, ConfigError, DataError, WeightsError
from nvg.evaluation.classifier import Classifier, ClassifierConfig, load_classifier, save_classifier
from nvg.evaluation.metrics import Moments
from nvg.evaluation.npz import read_images, read_moments
from nvg.evaluation.reference import Reference, load_reference
from nvg.frozen.weights import read_tensors
from nvg.generator import ContentGenerator, StructureGenerator
from nvg.released.checkpoints import TOKENIZER, extract
from nvg.serving.errors import RequestError
from nvg.serving.images import open_drawing, open_upload
from nvg.training import checkpoint
from nvg.training.ema import EMA
from nvg.training.saver import Saver
from tests.support.pictures import config as image_config
from tests.support.pictures import encode, pixels, write_folder, write_idx, write_parquet, write_tar

SECONDS = 10  # of computing for one input; of waiting, on a machine with other work, twelve times that, twice
MEMORY = 2 * 2**30  # bytes above what the process had before
TURN = 20.0  # seconds of a child
ODD: tuple[object, ...] = (
    None,
    True,
    -1,
    0,
    1,
    2**31,
    2**63,
    10**30,
    1.5,
    float("nan"),
    float("inf"),
    "",
    "x",
    "../../x",
    "a\0b",
    "\n",
    [],
    [1],
    ["x", None],
    {},
    {"x": 1},
    "???",
    "${x}",
    "${oc.env:HOME}",
    "x" * 5000,
)
WORDS = (
    b"null",
    b"[]",
    b"{}",
    b"-1",
    b"1e999",
    b"NaN",
    b'"',
    b": ",
    b"\n",
    b"\0",
    b"!!python/object:os.getpid ",
    b"&a",
    b"*a",
    b"${x}",
    b"../",
    b"\xff\xfe",
    b"\xf0\x9f",
    b"\r\n\r\n",
)
NAMES = ("../../x.png", "/etc/x.png", "a\nb.png", "\udcff.png", "x" * 90 + ".cls", ".", "", "a/../b.cls")
CONTENTS = (b"", b"-1", b"99", b"\xff", b"1e3", b'{"label": null}', b'{"label": 1e400}', b"[" * 2000)
NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
TABLES = ("LOC_synset_mapping.txt", "LOC_val_solution.csv", "ILSVRC2012_validation_ground_truth.txt", "meta.mat")
Mutate = Callable[[random.Random, bytes], bytes]


@dataclass
class Target:
    """A reader: what it is given, how that is changed, and which errors are its own."""

    seeds: list[bytes]
    run: Callable[[bytes], object]
    errors: tuple[type[Exception], ...]
    mutate: Sequence[Mutate] = ()  # besides changes of bytes


# ---- mutations ----


def change_bytes(rng: random.Random, data: bytes) -> bytes:
    """One to eight changes: bits, bytes, numbers, cuts, copies, insertions, words."""
    result = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 8))):
        size = len(result)
        at = rng.randrange(size + 1)
        span = rng.randrange(1, max(2, min(size, 2 ** rng.randrange(1, 12))))
        kind = rng.randrange(8)
        if kind == 0 and at < size:
            result[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            result[at : at + 1] = rng.randbytes(1)
        elif kind == 2:
            width, order = rng.choice((1, 2, 4)), rng.choice(("<", ">"))
            number = struct.pack(order + "I", rng.choice(NUMBERS))
            result[at : at + width] = number[:width] if order == "<" else number[-width:]
        elif kind == 3:
            del result[at : at + span]
        elif kind == 4:
            result[at:at] = result[at : at + span]
        elif kind == 5:
            result[at:at] = rng.choice(WORDS)
        elif kind == 6:
            result[at : at + span] = rng.randbytes(min(span, 64))
        else:
            del result[at:]
    return bytes(result)


def change_value(rng: random.Random, value: Any) -> Any:
    """One node of nested lists and dictionaries replaced by something odd, taken out, or put in."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        kind = rng.random()
        if kind < 0.1:
            return {name: item for name, item in value.items() if name != key}
        if kind < 0.2:
            return value | {rng.choice(("x", "", "format", key + "_")): rng.choice(ODD)}
        return value | {key: change_value(rng, value[key])}
    if isinstance(value, list) and value and rng.random() < 0.7:
        at = rng.randrange(len(value))
        return value[:at] + [change_value(rng, value[at])] * rng.choice((1, 1, 0, 3)) + value[at + 1 :]
    return rng.choice(ODD)


def change_json(rng: random.Random, data: bytes) -> bytes:
    """The structure of a JSON document."""
    return json.dumps(change_value(rng, json.loads(data))).encode()


def change_yaml(rng: random.Random, data: bytes) -> bytes:
    """The structure of a YAML document."""
    return yaml.safe_dump(change_value(rng, yaml.safe_load(data)), sort_keys=False).encode()


def change_header(rng: random.Random, data: bytes) -> bytes:
    """The header of a safetensors file: 8 bytes of length, JSON, tensors."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    for key in rng.sample(("reference", "config"), 2):  # documents in the metadata
        if key in header.get("__metadata__", {}) and rng.random() < 0.5:
            inner = change_value(rng, json.loads(header["__metadata__"][key]))
            header["__metadata__"] = header["__metadata__"] | {key: json.dumps(inner)}
            break
    else:
        header = change_value(rng, header)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


def change_numbers(rng: random.Random, data: bytes) -> bytes:
    """Values of a safetensors file, which stays a well-formed one: NaN, infinities, huge and tiny ones."""
    start = 8 + int.from_bytes(data[:8], "little")
    result = bytearray(data)
    for _ in range(rng.choice((1, 8, 64))):
        at = rng.randrange(start, max(start + 1, len(data) - 4))
        result[at : at + 4] = struct.pack("<f", rng.choice((float("nan"), float("inf"), -3e38, 1e-40, 0.0)))
    return bytes(result[: len(data)])


def change_part(rng: random.Random, data: bytes) -> bytes:
    """A well-formed Parquet file with another schema metadata, other columns or other types."""
    table = pq.read_table(io.BytesIO(data))
    metadata = dict(table.schema.metadata or {})
    kind = rng.randrange(4)
    if kind < 2 and metadata:
        key = rng.choice(sorted(metadata))
        if key != b"ARROW:schema":
            try:
                metadata[key] = json.dumps(change_value(rng, json.loads(metadata[key]))).encode()
            except ValueError:
                metadata[key] = rng.choice(WORDS)
        table = table.replace_schema_metadata(metadata)
    elif kind == 2:
        table = table.drop_columns([rng.choice(table.column_names)])
    else:
        at = rng.randrange(table.num_columns)
        column = pa.array([rng.choice((None, "x", b"x", 2**40, -1, True, [1, 2])) for _ in range(1)] * table.num_rows)
        table = table.set_column(at, table.column_names[at], column)
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def change_tar(rng: random.Random, data: bytes) -> bytes:
    """A well-formed archive with odd member names, kinds, sizes and contents."""
    buffer = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(data)) as source,
        tarfile.open(
            fileobj=buffer,
            mode="w",
            format=rng.choice((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT)),
            errors="surrogateescape",
        ) as archive,
    ):
        for member in source:
            content = source.extractfile(member).read()  # type: ignore[union-attr]
            if rng.random() < 0.3:
                member.name = rng.choice(NAMES)
            if rng.random() < 0.1:
                member.type = rng.choice((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE, b"?"))
                member.linkname = "/etc/passwd"
            if rng.random() < 0.3:
                content = rng.choice(CONTENTS)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


# ---- targets ----


def image_seeds() -> list[bytes]:
    """Small pictures of every format and mode that the sources list."""
    base = Image.fromarray(pixels(0, (19, 23)))
    alpha = base.convert("RGBA")
    alpha.putalpha(base.convert("L"))
    deep = Image.fromarray(np.arange(400, dtype=np.uint16).reshape(20, 20) * 100)
    exif = Image.Exif()
    exif[0x0112] = 6
    result = [encode(base.convert(mode), "JPEG") for mode in ("L", "RGB", "CMYK")]
    result += [encode(base, "JPEG", progressive=True), encode(base, "JPEG", exif=exif.tobytes())]
    result += [encode(base.convert(mode), "PNG") for mode in ("1", "L", "LA", "P", "RGB")]
    result += [encode(alpha, "PNG"), encode(deep, "PNG"), encode(base.convert("P"), "PNG", transparency=0)]
    result += [encode(base.convert("P"), "GIF"), encode(base, "GIF", save_all=True, append_images=[base.rotate(90)])]
    result += [encode(base.convert(mode), "TIFF") for mode in ("1", "L", "RGB", "CMYK", "F", "LAB")]
    result += [encode(deep, "TIFF"), encode(alpha, "TIFF")]
    compressions = ("tiff_lzw", "jpeg", "tiff_adobe_deflate", "packbits")
    result += [encode(base, "TIFF", compression=name) for name in compressions]
    result += [encode(base.convert("1"), "TIFF", compression="group4")]
    result += [encode(base, "WEBP"), encode(alpha, "WEBP", lossless=True), encode(base, "AVIF"), encode(alpha, "AVIF")]
    return result + [encode(base.convert(mode), kind) for mode in ("L", "RGB") for kind in ("BMP", "PPM")]


def read_source(source: str, path: Path, **changes: Any) -> None:
    """All that building tokens reads of a data set."""
    config = image_config(source=source, train=str(path), **changes)
    opened = open_source(config, "train")
    for unit in opened.units:
        for _ in read_pieces(opened.reader(), unit, config, 1, 0):
            pass


class Inputs:
    """A folder into which a target writes the file that its reader opens."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)

    def put(self, name: str, data: bytes) -> Path:
        """Write a file in place of the one before."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path


def targets(folder: Path, only: Sequence[str] = ()) -> dict[str, Target]:
    """Make every reader's target by its name; `only` keeps those whose name begins with one of these words.

    The folder must be empty: valid files are made in it first, from which the inputs are mutated.
    """
    inputs = Inputs(folder / "input")
    every: dict[str, Target] = {}
    for make in (
        image_targets,
        shard_targets,
        idx_targets,
        ilsvrc_targets,
        token_targets,
        config_targets,
        artifact_targets,
        evaluation_targets,
        weights_targets,
        published_targets,
    ):
        every |= make(folder, inputs)
    return {name: target for name, target in every.items() if not only or name.startswith(tuple(only))}


def image_targets(folder: Path, inputs: Inputs) -> dict[str, Target]:
    """An image of a data set, an uploaded one, a drawing."""

    def view(data: bytes) -> None:
        for channels in (1, 3):
            make_view(decode_image(data, channels), image_config(channels=channels, crop_scale=1.2), 1, 0, "x")

    def upload(data: bytes) -> None:
        open_upload(data, channels=3, max_pixels=2**20, field="image")

    images = image_seeds()
    return {
        "image": Target(images, view, (BrokenImageError,)),
        "upload": Target(images, upload, (RequestError,)),
        "drawing": Target(images, lambda d: open_drawing(d, max_pixels=2**20, field="mask"), (RequestError,)),
    }


def shard_targets(folder: Path, inputs: Inputs) -> dict[str, Target]:
    """Archives and Parquet files of images."""
    members = [(f"{n}.{s}", d) for n in range(3) for s, d in (("png", encode(pixels(n))), ("cls", b"%d" % n))]
    members += [("4.jpg", encode(pixels(4), "JPEG")), ("4.json", b'{"label": 2}')]
    tar = Path(write_tar(folder / "seed.tar", members)).read_bytes()
    kinds: tuple[dict[str, Any], ...] = ({}, {"names": ["a", "b", "c"]}, {"text": True})
    tables = [write_parquet(folder / f"{number}.parquet", **options) for number, options in enumerate(kinds)]
    return {
        "tar": Target([tar, gzipped(tar)], lambda d: list(read_members(str(inputs.put("a.tar", d)))), ()),
        "webdataset": Target(
            [tar], lambda d: read_source("webdataset", inputs.put("w/a.tar", d)), (DataError,), [change_tar]
        ),
        "parquet": Target(
            [Path(name).read_bytes() for name in tables],
            lambda d: read_source("parquet", inputs.put("p/a.parquet", d)),
            (DataError,),
            [change_part],
        ),
    }


def gzipped(data: bytes) -> bytes:
    """Data as gzip packs them, without a time stamp."""
    packer = zlib.compressobj(wbits=31)
    return packer.compress(data) + packer.flush()


def idx_targets(folder: Path, inputs: Inputs) -> dict[str, Target]:
    """The images and the labels of an idx set, each beside its unchanged neighbour."""
    from nvg.data.sources.idx import _images

    result = {}
    idx = Path(write_idx(folder / "idx", pixels(0, (6, 8)), [0, 1, 2, 0, 1, 2])).parent
    names = sorted(path.name for path in idx.iterdir())
    for name in names:
        shutil.copytree(idx, inputs.folder / f"idx-{name}")
        packed = (idx / name).read_bytes()
        plain = zlib.decompressobj(wbits=31).decompress(packed)

        def read(data: bytes, name: str = name) -> None:
            _images.cache_clear()  # files of this name change here
            inputs.put(f"idx-{name}/{name}", data)
            read_source("idx", inputs.folder / f"idx-{name}" / names[0], channels=1)

        def change_inside(rng: random.Random, data: bytes, plain: bytes = plain) -> bytes:
            return gzipped(change_bytes(rng, plain))

        result["idx " + name.split("-")[1]] = Target([packed], read, (DataError,), [change_inside])
    return result


def ilsvrc_targets(folder: Path, inputs: Inputs) -> dict[str, Target]:
    """Each table of an ILSVRC folder, in a folder where it decides."""
    result = {}
    write_ilsvrc(folder / "ilsvrc")
    for name in TABLES:
        base = inputs.folder / f"ilsvrc-{name}"
        shutil.copytree(folder / "ilsvrc", base)
        if name in TABLES[2:]:
            (base / "LOC_val_solution.csv").unlink()
            (base / {TABLES[2]: TABLES[3], TABLES[3]: TABLES[0]}[name]).unlink()

        def read(data: bytes, name: str = name) -> None:
            inputs.put(f"ilsvrc-{name}/{name}", data)
            open_source(image_config(source="ilsvrc", train=str(inputs.folder / f"ilsvrc-{name}")), "train")

        result[f"ilsvrc {name}"] = Target([(folder / "ilsvrc" / name).read_bytes()], read, (DataError,))
    return result


def token_targets(folder: Path, inputs: Inputs) -> dict[str, Target]:
    """A part of the tokens, and their metadata.json."""
    form = token_parts.TokenFormat("0" * 16, 4, 16, 16, ["a", "b", "c"])
    columns = {
        "image_id": [str(n) for n in range(6)],
        "label": [n % 3 for n in range(6)],
        "content": np.zeros((6, 31), np.uint16),
        "structure": np.tile(np.arange(16), (6, 1)),
    }
    token_parts.write_part(str(folder / "tokens"), form, "part-000000-view0.parquet", 0, columns, [])
    metadata = token_parts.finish(str(folder / "tokens"), form, {(0, 0)}, {"views": 1})

    def read_part(data: bytes) -> None:
        path = str(inputs.put("t/part-000000-view0.parquet", data))
        for read in (
            lambda: token_parts.to_arrays(token_parts.read_part(path, form.fingerprint)),
            lambda: token_parts.read_footers([path], form, str(inputs.folder)),
        ):
            with contextlib.suppress(DataError):
                read()

    def read_metadata(data: bytes) -> None:
        token_parts.read_metadata(str(inputs.put("tm/metadata.json", data).parent))

    part = (folder / "tokens" / "part-000000-view0.parquet").read_bytes()
    return {
        "token part": Target([part], read_part, (), [change_part]),
        "token metadata": Target([json.dumps(metadata).encode()], read_metadata, (DataError,), [change_json]),
    }


def config_targets(folder: Path, inputs: Inputs) -> dict[str, Target]:
    """A configuration file."""
    text = configuration.to_yaml(toy.toy_config()).encode()

    def read(data: bytes) -> None:
        configuration.load(inputs.put("c.yaml", data))

    return {"config": Target([text], read, (ConfigError,), [change_yaml])}


def training_objects() -> dict[str, Any]:
    """A module with its average and its optimizer, as a checkpoint takes them."""
    modules = {"first": torch.nn.Linear(4, 3)}
    return {
        "modules": modules,
        "averages": {"first": EMA(modules["first"], 0.9)},
        "optimizers": {"first": torch.optim.AdamW(modules["first"].parameters())},
    }


def make_step(objects: dict[str, Any]) -> None:
    """One step of training."""
    objects["modules"]["first"](torch.ones(2, 4)).sum().backward()
    objects["optimizers"]["first"].step()


def write_artifacts(folder: Path) -> None:
    """A tokenizer's folder, a sampler's, and a training checkpoint."""
    torch.manual_seed(0)
    config = toy.toy_config()
    autoencoder = Autoencoder(config.tokenizer)
    generators = {"content": ContentGenerator(config.content), "structure": StructureGenerator(config.structure)}
    tokenizer = autoencoder.state_dict()
    models.save_tokenizer(str(folder / "tokenizer"), tokenizer, config, class_names=["a", "b"], metadata={})
    models.export_sampler(
        str(folder / "sampler"),
        tokenizer=tokenizer,
        config=config,
        class_names=["a", "b"],
        metadata={},
        parts={name: module.state_dict() for name, module in generators.items()},
    )
    objects = training_objects()
    make_step(objects)
    metadata = {"identity": "toy", "seed": 0}
    with Saver() as saver:
        saved = checkpoint.save_checkpoint(saver, str(folder), 1, **objects, config=config, metadata=metadata)
    shutil.move(saved, folder / "training")


def resume(path: str) -> None:
    """Go on from a training checkpoint for a step."""
    checkpoint.latest_checkpoint(str(Path(path).parent))
    objects = training_objects()
    checkpoint.restore_checkpoint(path, **objects, identity="toy")
    make_step(objects)


def trust_checksum(path: Path) -> None:
    """Write a file's present checksum into its checkpoint's metadata, so that the reader gets past it."""
    metadata = json.loads((path.parent / "metadata.json").read_bytes())
    metadata["files"][path.name] = checksum(path)
    (path.parent / "metadata.json").write_text(json.dumps(metadata))


def artifact_targets(folder: Path, inputs: Inputs) -> dict[str, Target]:
    """Folders with weights: each of their files is a target beside its unchanged neighbours."""
    write_artifacts(folder)
    result = {}
    loaders: dict[str, Callable[[str], object]] = {
        "tokenizer": models.load_tokenizer,
        "sampler": models.load_sampler,
        "training": resume,
    }
    mutations = {".json": [change_json], ".yaml": [change_yaml], ".safetensors": [change_header, change_numbers]}
    for kind, load in loaders.items():
        for file in sorted((folder / kind).iterdir()):
            name = f"{kind} {file.name}"
            shutil.copytree(folder / kind, inputs.folder / name)

            def read(
                data: bytes,
                name: str = name,
                file: Path = file,
                load: Callable[[str], object] = load,
                sums: bool = kind == "training" and file.name != "metadata.json",
            ) -> None:
                path = inputs.put(f"{name}/{file.name}", data)
                if sums and data[:1] < b"\x80":
                    trust_checksum(path)
                load(str(path.parent))

            result[name] = Target([file.read_bytes()], read, (CheckpointError, ConfigError), mutations[file.suffix])
    return result


def evaluation_targets(folder: Path, inputs: Inputs) -> dict[str, Target]:
    """What an evaluation reads: a reference, a classifier, an .npz of the ADM suite."""
    moments = Moments(torch.zeros(3, dtype=torch.float64), torch.eye(3, dtype=torch.float64))
    reference = Reference("6 test images", "0", "classifier", 6, moments, torch.zeros(6, 3), 2)
    reference.save(str(folder / "r.safetensors"))
    save_classifier(Classifier(ClassifierConfig(channels=1, size=16, num_classes=2)), folder / "c.safetensors")
    suite = io.BytesIO()
    np.savez(suite, arr_0=np.zeros((2, 4, 4, 3), np.uint8), mu=np.zeros(3), sigma=np.eye(3))

    def read_npz(data: bytes) -> None:
        for read in (lambda: list(read_images(io.BytesIO(data), 2)), lambda: read_moments(io.BytesIO(data))):
            with contextlib.suppress(DataError):
                read()

    return {
        "reference": Target(
            [(folder / "r.safetensors").read_bytes()],
            lambda d: load_reference(str(inputs.put("r.safetensors", d))),
            (DataError,),
            [change_header],
        ),
        "classifier": Target(
            [(folder / "c.safetensors").read_bytes()],
            lambda d: load_classifier(inputs.put("cl.safetensors", d)),
            (DataError,),
            [change_header],
        ),
        "npz": Target([suite.getvalue()], read_npz, ()),
    }


def weights_targets(folder: Path, inputs: Inputs) -> dict[str, Target]:
    """Weights of a frozen network."""

    def read(data: bytes) -> None:
        read_tensors(str(inputs.put("v.safetensors", data)), key="x", expected="x", remedy="x")

    return {"weights": Target([save({"a": torch.ones(3)})], read, (WeightsError,), [change_header])}


def published_targets(folder: Path, inputs: Inputs) -> dict[str, Target]:
    """A published checkpoint, as the process that reads it takes it."""
    file = io.BytesIO()
    torch.save({"epoch": 1, "state_dict": {"encoder.a": torch.ones(3), "loss.b": torch.ones(2)}}, file)

    def read(data: bytes) -> None:
        extract(str(inputs.put("ae.ckpt", data)), TOKENIZER, inputs.folder / "ae.taken")

    return {"published": Target([file.getvalue()], read, (CheckpointError,))}


def write_ilsvrc(root: Path) -> None:
    """A flat validation folder with every table."""
    from scipy.io import savemat

    write_folder(root, classes=("n00000001", "n00000002", "n00000003"), each=1)
    (root / "ILSVRC2012_val_00000001.JPEG").write_bytes(encode(pixels(0), "JPEG"))
    (root / "LOC_synset_mapping.txt").write_text("".join(f"n0000000{n} name {n}, other\n" for n in (2, 1, 3)))
    (root / "LOC_val_solution.csv").write_text("ImageId,PredictionString\nILSVRC2012_val_00000001,n00000002 1 2 3 4\n")
    (root / "ILSVRC2012_validation_ground_truth.txt").write_text("2\n")
    kind = [("ILSVRC2012_ID", "O"), ("WNID", "O")]
    synsets = np.array([(float(n), f"n0000000{n}") for n in (1, 2, 3)], dtype=kind)
    savemat(root / "meta.mat", {"synsets": synsets})


# ---- running ----


def make_input(target: Target, key: str) -> bytes:
    """The input of a key, `seed/target/turn/number`."""
    rng = random.Random(key)
    data = rng.choice(target.seeds)
    if target.mutate and rng.random() < 0.6:
        data = rng.choice(target.mutate)(rng, data)
        if rng.random() < 0.7:
            return data
    return change_bytes(rng, data)


def child(
    name: str, target: Target, key: str, seconds: float, most: int | None, out: Path, progress: int, first: int = 0
) -> None:
    """Run one target for a turn, from the input `first` on and at least that one; findings go to `out`, the number of
    inputs so far to the file `progress`."""
    for death in (signal.SIGALRM, signal.SIGPROF):
        signal.signal(death, signal.SIG_DFL)  # ends the process, also inside native code
    with open("/proc/self/statm") as file:
        size, resident = (int(value) * resource.getpagesize() for value in file.read().split()[:2])
    resource.setrlimit(resource.RLIMIT_AS, (size + 2 * MEMORY,) * 2)
    warnings.simplefilter("ignore")
    end = time.monotonic() + seconds
    number = first
    while number == first or (time.monotonic() < end and number != most):
        data = make_input(target, f"{key}/{number}")
        os.pwrite(progress, struct.pack("<Q", number), 0)
        signal.setitimer(signal.ITIMER_REAL, 12 * SECONDS)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            target.run(data)
        except target.errors:
            pass
        except BaseException:
            save_finding(out, name, f"{key}/{number}", data, traceback.format_exc())
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        number += 1
        if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 > resident + MEMORY:
            save_finding(out, name, f"{key}/{number - 1}", data, "more than 2 GB of memory")
            break
    os.pwrite(progress, struct.pack("<Q", number), 0)


def save_finding(out: Path, name: str, key: str, data: bytes, reason: str) -> None:
    """Keep an input and what it did, once a place in the code."""
    lines = reason.strip().splitlines()
    places = [line for line in lines if line.strip().startswith("File ")]
    mark = f"{zlib.crc32((name + (places[-1] if places else '') + lines[-1].split(':')[0]).encode()):08x}"
    text = out / f"{name.replace(' ', '_')}-{mark}.txt"
    if not text.exists():
        text.with_suffix(".bin").write_bytes(data)
        text.write_text(f"{key}\n{reason}\n")


def fuzz(
    every: dict[str, Target], minutes: float, out: Path, *, seed: int = 0, turn: float = TURN, most: int | None = None
) -> dict[str, dict[str, int]]:
    """Fuzz targets in turns, for so long or for one turn of `most` inputs; returns executions and findings of each.

    Findings, and the counts so far, are written to the folder `out`.
    """
    out.mkdir(parents=True, exist_ok=True)
    counts = {name: {"executions": 0, "findings": 0} for name in every}
    end = time.monotonic() + 60 * minutes
    number = 0
    while time.monotonic() < end and (number == 0 or most is None):
        for name, target in every.items():
            key = f"{seed}/{name}/{number}"
            seconds = max(0.0, min(turn, end - time.monotonic()))
            done, death = in_child(lambda *a: child(name, target, key, seconds, most, out, *a))  # noqa: B023
            counts[name]["executions"] += done + bool(death)
            if death == "SIGALRM":  # it waited, perhaps for a busy machine: that input alone, once more
                _, death = in_child(lambda fd: child(name, target, key, 0, most, out, fd, done))  # noqa: B023
            if death:
                reason = f"more than {SECONDS} s" if death in ("SIGALRM", "SIGPROF") else f"died: {death}"
                save_finding(out, name, f"{key}/{done}", make_input(target, f"{key}/{done}"), reason)
            counts[name]["findings"] = len(list(out.glob(f"{name.replace(' ', '_')}-*.txt")))
            (out / f"counts-{seed}.json").write_text(json.dumps(counts, indent=1))
        number += 1
    return counts


def in_child(function: Callable[[int], None]) -> tuple[int, str]:
    """Call it in a forked process with a file that it keeps a number in: that number, and what killed the process."""
    with tempfile.TemporaryFile() as progress:
        sys.stdout.flush()
        process = os.fork()
        if process == 0:
            try:
                faulthandler.disable()  # a death is told by the parent
                os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # native decoders talk
                function(progress.fileno())
                os._exit(0)
            finally:
                os._exit(1)
        _, status = os.waitpid(process, 0)
        (number,) = struct.unpack("<Q", os.pread(progress.fileno(), 8, 0).ljust(8, b"\0"))
    return number, signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else "exit" if status else ""


def main(argv: Sequence[str] | None = None) -> int:
    """Fuzz and print a table; 1 when there are findings."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="targets, by the beginning of their names, with commas")
    parser.add_argument("--out", type=Path, default=Path("runs/fuzz"), help="folder for findings")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        every = targets(Path(scratch) / "fuzz", [name for name in arguments.only.split(",") if name])
        if not every:
            parser.error(f"--only {arguments.only}: no such target")
        counts = fuzz(every, arguments.minutes, arguments.out, seed=arguments.seed)
    for name, count in counts.items():
        print(f"{name:<50}{count['executions']:>10}{count['findings']:>6}")
    return int(any(count["findings"] for count in counts.values()))


if __name__ == "__main__":
    sys.exit(main())
