"""The law of all readers: an image is a record or a row of the quarantine, once, with the label that was meant."""

import io
import json
import os
import shutil
import tarfile
import tempfile
import unicodedata
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nvg.data import open_source
from nvg.data.stream import read_pieces
from tests.support.pictures import config, encode, pixels, write_idx

PNGS = [encode(pixels(number, (3, 4))) for number in range(8)]
BROKEN = b"no image"
CHARACTERS = "aB9.-_ é\u0301ß{}[]*?%#:✓"
names = st.text(st.sampled_from(CHARACTERS), min_size=1, max_size=6).filter(lambda text: not text.startswith("."))
law = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])


@contextmanager
def scratch():
    folder = tempfile.mkdtemp()
    try:
        yield Path(folder)
    finally:
        shutil.rmtree(folder)


def read(settings):
    """(id -> class of every record, ids of all rows of the quarantine) of a source, as building tokens reads it."""
    source = open_source(settings, "train")
    records, broken = [], []
    for unit in source.units:
        for piece in read_pieces(source.reader(), unit, settings, 0, 0):
            records += zip(piece.ids, (source.class_names[label] for label in piece.labels), strict=True)
            broken += [row.image_id for row in piece.broken]
            assert all(row.reason for row in piece.broken)
    ids = [image_id for image_id, _ in records] + broken
    assert len(set(ids)) == len(ids), "an id came twice"
    assert len(ids) == source.count()
    return dict(records), broken


# ---- folders ----


@law
@given(
    st.dictionaries(
        st.tuples(
            names, st.lists(names, max_size=2), names, st.sampled_from([".png", ".JPG", ".webp", ".heic", ".TIFF"])
        ).map(lambda parts: (parts[0], "/".join([*parts[1], parts[2] + parts[3]]))),
        st.booleans(),
        min_size=1,
        max_size=12,
    )
)
def test_folders(images):
    with scratch() as root:
        written = {}
        for number, ((name, path), sound) in enumerate(images.items()):
            file = root / "set" / name / path
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(PNGS[number % 8] if sound else BROKEN)
            except (FileExistsError, NotADirectoryError, IsADirectoryError):  # a name is a file here and a folder there
                continue
            written[f"{name}/{path}"] = sound
        classes = {unicodedata.normalize("NFC", path.split("/")[0]) for path in written}
        found, broken = read(config(train=str(root / "set"), num_classes=len(classes)))
        assert found.keys() == {path for path, sound in written.items() if sound}
        assert set(broken) == {path for path, sound in written.items() if not sound}
        assert all(unicodedata.normalize("NFC", path.split("/")[0]) == label for path, label in found.items())


# ---- idx ----


@law
@given(st.lists(st.integers(0, 4), min_size=1, max_size=12), st.integers(1, 5))
def test_idx(labels, unit_images):
    labels = [0, *labels]
    with scratch() as root:
        images = np.stack([pixels(number, (3, 4))[:, :, 0] for number in range(len(labels))])
        train = write_idx(root, images, labels)
        found, broken = read(
            config(source="idx", train=train, channels=1, num_classes=max(labels) + 1, unit_images=unit_images)
        )
        assert not broken and found == {str(number): str(label) for number, label in enumerate(labels)}


# ---- Parquet ----

CLASSES = ("ant", "bée", "cow.1")
rows = st.lists(
    st.tuples(st.sampled_from([*CLASSES, None, "?"]), st.sampled_from(["sound", "broken", "null"])), max_size=7
)
files = st.lists(st.tuples(rows, st.permutations(CLASSES), st.integers(1, 4)), min_size=1, max_size=3)
KINDS = [pa.int64(), pa.uint8(), pa.float64(), pa.string(), pa.large_string(), pa.string_view()]


@law
@given(files, st.lists(st.sampled_from(KINDS), min_size=3, max_size=3), st.booleans(), st.integers(1, 5))
def test_parquet(files, kinds, in_struct, unit_images):
    """Every file names the classes in an order of its own, or has them as strings; some labels are null or no class."""
    with scratch() as root:
        expected, expected_broken = {}, set()
        whole = [(label, "sound") for label in CLASSES]  # so that all classes are there
        for number, ((rows, order, group), kind) in enumerate(zip(files, kinds, strict=False)):
            text = not (pa.types.is_integer(kind) or pa.types.is_floating(kind))
            rows = [*whole, *rows] if number == 0 else rows
            if text:  # a string is a class, whichever it is
                rows = [(None if label == "?" else label, state) for label, state in rows]
            numbers = {label: order.index(label) if label in order else 9 for label, _ in rows if label}
            labels = [None if label is None else label if text else numbers[label] for label, _ in rows]
            bytes_of = {"sound": PNGS[0], "broken": BROKEN, "null": None}
            images = pa.array([bytes_of[state] for _, state in rows], pa.binary())
            if in_struct:
                images = pa.StructArray.from_arrays([images, pa.nulls(len(rows), pa.string())], ["bytes", "path"])
            features = {"label": {"names": list(order)}}
            table = pa.table({"image": images, "label": pa.array(labels).cast(kind)})
            table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
            pq.write_table(table, root / f"{number}.parquet", row_group_size=group)
            for row, (label, state) in enumerate(rows):
                if state == "sound" and label in CLASSES:
                    expected[f"{number}.parquet/{row}"] = label
                else:
                    expected_broken.add(f"{number}.parquet/{row}")
        found, broken = read(config(source="parquet", train=str(root), unit_images=unit_images))
        assert found == expected and set(broken) == expected_broken


# ---- WebDataset ----

keys = st.tuples(st.sampled_from(["", "a/", "v1.0/", "./"]), st.sampled_from("klm✓é")).map("".join)
samples = st.tuples(
    keys,
    st.sampled_from([".jpg", ".PNG", ".1.jpg", ".2.jpg", ".seg.png", ".heic"]),
    st.sampled_from([".cls", ".json", ".1.cls", ".txt", None]),
    st.sampled_from([b"0", b"1\n", b"2", b"3.5", b"", b"7"]),
    st.booleans(),
)
READABLE = (".cls", ".json")


@law
@given(st.lists(samples, min_size=1, max_size=10), st.randoms(use_true_random=False), st.sampled_from([0, 1, 3, 99]))
def test_webdataset(samples, random, moves):
    """Any members in any order: keys that repeat, dots, labels that are missing or wrong."""
    members = []  # (name, bytes); the bytes of an image say which it is
    for number, (key, image, label, value, sound) in enumerate(samples):
        members.append((key + image, (encode(pixels(number, (3, 4))) if sound else b"broken %d" % number)))
        if label is not None:
            members.append((key + label, b'{"label": %s}' % (value or b"null") if label == ".json" else value))
    for _ in range(moves):
        members.insert(random.randrange(len(members)), members.pop(random.randrange(len(members))))
    members += [("zero.png", PNGS[0]), ("zero.cls", b"0")]  # else 3 alone would be taken for a label that begins at 1
    with scratch() as root:
        with tarfile.open(root / "s.tar", "w") as archive:
            for name, data in members:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        found, broken = read(config(source="webdataset", train=str(root / "s.tar")))
    pictures = [name for name, _ in members if name.lower().endswith((".jpg", ".png", ".heic"))]
    alone = [row for row in broken if _key(row) not in {_key(name) for name in pictures}]  # labels without an image
    assert len(found) + len(broken) - len(alone) == len(pictures)
    for image_id, label in found.items():
        assert label in _meant(members, image_id.removeprefix("s.tar/"))


def _key(name):
    folder, _, file = name.removeprefix("s.tar/").rpartition("/")
    return f"{folder}/{file.split('.')[0].split('#')[0]}".removeprefix("/")


def _meant(members, key):
    """The labels that stand at the key."""
    values = [data for name, data in members if name in (key + ".cls", key + ".json")]
    return {
        str(json.loads(value)["label"] if value.startswith(b"{") else int(value)) for value in values if _number(value)
    }


def _number(value):
    return value.strip() in (b"0", b"1", b"2") or value.startswith(b"{") and json.loads(value)["label"] in (0, 1, 2)


# ---- ILSVRC ----


@law
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["n00000001", "n00000002"]), st.sampled_from("xyz"), st.sampled_from([".JPEG", ".png"])
        ),
        unique=True,
        max_size=8,
    ),
    st.lists(st.tuples(st.sampled_from("xyz"), st.sampled_from([".JPEG", ".png"])), min_size=1, max_size=6),
)
def test_ilsvrc(images, members):
    """Unpacked classes beside an archive; files of one stem, and members of one name."""
    with scratch() as root:
        for synset, stem, suffix in [("n00000001", "only", ".png"), ("n00000002", "only", ".png"), *images]:
            os.makedirs(root / synset, exist_ok=True)
            (root / synset / f"{stem}{suffix}").write_bytes(PNGS[0])
        with tarfile.open(root / "n00000003.tar", "w") as archive:
            for stem, suffix in members:
                info = tarfile.TarInfo(stem + suffix)
                info.size = len(PNGS[1])
                archive.addfile(info, io.BytesIO(PNGS[1]))
        found, broken = read(config(source="ilsvrc", train=str(root)))
        assert not broken and len(found) == 2 + len(images) + len(members)
        assert all(image_id.startswith(label) for image_id, label in found.items())


pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
