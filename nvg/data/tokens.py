"""Granularity tokens as Parquet: one row per image and view, one part (a file) per read unit and view.

    image_id string | view int8 | label int16 | content fixed_size_list<uint16, 2L - 1> | structure
    fixed_size_list<uint8 or uint16, L> | features_crc32 uint32 (with representation alignment alone)

The column content holds the tokens of all stages side by side, coarse to fine; structure holds the K-bit codes in
raster order. A part's schema metadata names the tokenizer, the sizes, the class names, the images, and the images of
its unit that could not be read. A part is written atomically under a name that follows from (unit, view): a restart
writes the missing parts, and no row is written twice. `metadata.json` is written when all parts are complete.
Alignment features stand beside each part (nvg/data/features.py).

    part-000003-view0.parquet                a unit of at most data.unit_images images: nearly every one
    part-000004-view0-0000.parquet ...       pieces of a larger unit (a tar shard, which cannot be cut beforehand), of
    part-000004-view0-0002-last.parquet      which the last says that it is; a unit without all its pieces is missing
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nvg import storage
from nvg.data.features import CHECKSUM, checksums, write_features
from nvg.data.records import BrokenImage
from nvg.errors import DataError, StorageError

COMPRESSION_LEVEL = 3
PART = re.compile(r"part-(\d{6,})-view(\d+)(?:-(\d{4,})(-last)?)?\.parquet$")
MOST_STAGES = 10  # K of 1,024 positions
COUNTS = ("views", "images", "rows", "parts", "quarantined")  # of metadata.json
QUARANTINE = ("image_id", "path", "reason")  # columns of quarantine.parquet
UnitView = tuple[int, int]  # number of a read unit, view


@dataclass(frozen=True)
class TokenFormat:
    """What a token set is made of. Every part's metadata holds it."""

    fingerprint: str  # of the tokenizer's weights
    last_stage: int  # K
    positions: int  # L
    codebook_size: int  # V
    class_names: list[str]
    feature_width: int | None = None  # D, of alignment features
    source: str = ""  # the images and how they are cut: parts of other images do not belong together

    @property
    def feature_shape(self) -> tuple[int, int] | None:
        """(L, D) of an image's alignment features, where the set has them."""
        return (self.positions, self.feature_width) if self.feature_width is not None else None

    def __post_init__(self) -> None:
        if not (1 <= self.last_stage <= MOST_STAGES and self.positions == 2**self.last_stage):
            raise ValueError(f"{self.positions} positions are not 2^{self.last_stage}, or too many")
        if not 2 <= self.codebook_size <= 2**16 or not 1 <= (self.feature_width or 1) <= 2**16:
            raise ValueError(f"codebook_size={self.codebook_size}, feature_width={self.feature_width}")

    def schema(self) -> pa.Schema:
        """The Arrow schema of a part."""
        structure = pa.uint8() if self.last_stage <= 8 else pa.uint16()
        columns = [
            ("image_id", pa.string()),
            ("view", pa.int8()),
            ("label", pa.int16()),
            ("content", pa.list_(pa.uint16(), 2 * self.positions - 1)),
            ("structure", pa.list_(structure, self.positions)),
        ]
        if self.feature_width is not None:
            columns.append((CHECKSUM, pa.uint32()))
        return pa.schema(columns)


# ---- parts: names, writing, reading ----


def part_name(unit: int, view: int, piece: int = 0, last: bool = True) -> str:
    """The file name of a unit's view, or of a piece of it."""
    name = f"part-{unit:06d}-view{view}"
    if piece or not last:
        name += f"-{piece:04d}" + ("-last" if last else "")
    return f"{name}.parquet"


def part_files(folder: str) -> dict[UnitView, list[str]]:
    """The complete units and views of a folder: (unit, view) -> paths or URLs of the pieces, in order."""
    pieces: dict[UnitView, dict[int, str]] = {}
    last_pieces: dict[UnitView, int] = {}
    for file in storage.list_files(folder, (".parquet",)):
        match = PART.search(file)
        if match is None:
            continue
        unit_view, piece = (int(match[1]), int(match[2])), int(match[3] or 0)
        if match[3] is None or match[4]:
            last_pieces[unit_view] = piece
        pieces.setdefault(unit_view, {})[piece] = file
    return {
        unit_view: [pieces[unit_view][piece] for piece in range(last + 1)]
        for unit_view, last in sorted(last_pieces.items())
        if set(range(last + 1)) <= set(pieces[unit_view])
    }


def write_part(
    folder: str, form: TokenFormat, name: str, view: int, columns: Mapping[str, Any], broken: Sequence[BrokenImage]
) -> int:
    """Write a part atomically, its features first: a part that is there has them. Returns the bytes of both files.

    name: of part_name. columns: image_id (list), label (n,), content (n, 2L - 1), structure (n, L) and, where the
    format has them, features (n, L * D). The same columns give the same bytes.
    """
    path, size = storage.join(folder, name), 0
    if form.feature_shape is not None:
        size = write_features(path, columns["features"], form.feature_shape)
    schema = form.schema()
    count = len(columns["image_id"])
    arrays = [pa.array(columns["image_id"], pa.string()), pa.array(np.full(count, view, np.int8))]
    arrays.append(pa.array(np.asarray(columns["label"], np.int16)))
    for column in ("content", "structure"):
        kind = schema.field(column).type
        flat = np.ascontiguousarray(columns[column]).astype(kind.value_type.to_pandas_dtype(), copy=False).reshape(-1)
        arrays.append(pa.FixedSizeListArray.from_arrays(pa.array(flat, kind.value_type), kind.list_size))
    if form.feature_shape is not None:
        arrays.append(pa.array(checksums(columns["features"])))
    metadata = {
        "nvg": json.dumps(asdict(form), sort_keys=True),
        "quarantine": json.dumps([asdict(item) for item in broken], sort_keys=True),
    }
    table = pa.Table.from_arrays(arrays, schema=schema.with_metadata(metadata))
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", compression_level=COMPRESSION_LEVEL, write_page_checksum=True)
    storage.write_bytes(path, buffer.getvalue())
    return size + buffer.tell()


def read_part(path: str, fingerprint: str | None = None) -> pa.Table:
    """A part's table. Raises DataError for another file, or for a part of another tokenizer than `fingerprint`."""
    with _parquet_errors(path), storage.open(path) as file:
        table = pq.read_table(file, page_checksum_verification=True)
    form = part_format(table.schema, path)
    if not table.schema.equals(form.schema()) or any(column.null_count for column in table.columns):
        raise DataError(f"{path} has not the columns that its metadata names, or gaps in them: run build_tokens again")
    if fingerprint is not None and form.fingerprint != fingerprint:
        raise DataError(
            f"{path} holds tokens of tokenizer {form.fingerprint}, not of {fingerprint}: run build_tokens for this one"
        )
    return table


@contextmanager
def _parquet_errors(path: str) -> Iterator[None]:
    """Turn the errors of a damaged Parquet file into DataError; a missing file and a failing store stay as they are."""
    try:
        yield
    except (FileNotFoundError, StorageError):
        raise
    except (pa.ArrowException, ValueError, OSError) as error:
        raise DataError(f"{path} is damaged ({error}): remove it and run build_tokens again") from None


def part_format(schema: pa.Schema, path: str) -> TokenFormat:
    """The format that a part's schema names. Raises DataError where the file is no token part."""
    raw = (schema.metadata or {}).get(b"nvg")
    if raw is None:
        raise DataError(f"{path} is no token part: its schema has no `nvg` metadata")
    return storage.parse_record(TokenFormat, raw, f"{path}: the `nvg` metadata", DataError)


def part_quarantine(schema: pa.Schema, path: str) -> list[BrokenImage]:
    """The images of a part's unit that could not be read. Raises DataError where the schema does not name them."""
    raw = (schema.metadata or {}).get(b"quarantine", b"")
    record = b'{"items": ' + raw + b"}"  # parse_record reads objects, and the metadata holds a list
    return storage.parse_record(_Quarantine, record, f"{path}: the quarantine", DataError).items


@dataclass(frozen=True)
class _Quarantine:
    items: list[BrokenImage]


def to_arrays(table: pa.Table) -> dict[str, np.ndarray]:
    """The columns that training reads, of n rows.

    codes (n, L), content (n, 2L - 1) and labels (n,), all int64; where the table has them, the checksums of features,
    and the place of each row (of nvg/data/stream.py).
    """
    names = {"structure": "codes", "content": "content", "label": "labels"}
    names |= {name: name for name in (CHECKSUM, "part", "row")}
    result = {}
    for column, name in names.items():
        if column not in table.column_names:
            continue
        array = table[column].combine_chunks()
        if isinstance(array, pa.ChunkedArray):
            array = array.chunk(0)
        if pa.types.is_fixed_size_list(array.type):
            values = array.flatten().to_numpy().reshape(len(array), array.type.list_size)
        else:
            values = array.to_numpy()
        result[name] = values.astype(np.int64)
    return result


@dataclass(frozen=True)
class PartSummary:
    """What a part's footer says: its number of rows, and the images of its unit that could not be read."""

    rows: int
    broken: list[BrokenImage]


def read_footers(files: Iterable[str], form: TokenFormat, folder: str) -> list[PartSummary]:
    """The footers of parts, in order. Raises DataError where one is damaged, or of another format than `form`."""

    def read(path: str) -> PartSummary:
        with _parquet_errors(path):
            with storage.open(path) as file:
                footer = pq.read_metadata(file)
            schema = footer.schema.to_arrow_schema()
        part = part_format(schema, path)
        if part == form and schema.names == form.schema().names:
            return PartSummary(footer.num_rows, part_quarantine(schema, path))
        if part.fingerprint != form.fingerprint:
            difference = f"of tokenizer {part.fingerprint}, not of {form.fingerprint}"
        else:
            difference = "of other images or settings"
        raise DataError(f"{path} is {difference}: remove {folder}, or give another output, and run build_tokens again")

    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(read, files))


# ---- the whole set ----


def read_metadata(folder: str) -> dict[str, Any]:
    """`metadata.json` of a finished token set. Raises DataError where it is missing, damaged or of another format."""
    path = storage.join(folder, storage.LAST_FILE)
    if not storage.exists(path):
        raise DataError(f"{folder} holds no finished token set ({storage.LAST_FILE} is missing): run build_tokens")
    try:
        metadata = storage.read_json(path)
    except ValueError as error:
        raise DataError(f"{error}: run build_tokens again") from None
    if not isinstance(metadata, dict) or not all(
        type(metadata.get(name)) is int and metadata[name] >= 0 for name in COUNTS
    ):
        raise DataError(f"{path} is damaged: {', '.join(COUNTS)} must be counts: run build_tokens again")
    storage.check_format(metadata, folder, DataError)
    metadata_format(metadata, path)
    return metadata


def metadata_format(metadata: Mapping[str, Any], path: str) -> TokenFormat:
    """The format that metadata.json names. Raises DataError where it names none."""
    names = {item.name for item in fields(TokenFormat)} & metadata.keys()
    return storage.parse_record(TokenFormat, json.dumps({name: metadata[name] for name in names}), path, DataError)


def finish(folder: str, form: TokenFormat, expected: set[UnitView], metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Check that a token set is complete, and close it; returns the content of metadata.json.

    Writes quarantine.parquet (one row per broken image, whatever the views) and, last, metadata.json. Raises DataError
    where the folder holds other units and views than `expected`, or no image could be read.
    """
    existing = part_files(folder)
    if set(existing) != expected:
        odd = sorted(set(existing) ^ expected)[:3]
        raise DataError(
            f"{folder} holds {len(existing)} parts where {len(expected)} belong (unit, view: {odd}, ...): remove what "
            "does not belong and run build_tokens again"
        )
    files = [(view, path) for (_, view), paths in existing.items() for path in paths]
    footers = read_footers([path for _, path in files], form, folder)
    images = sum(footer.rows for (view, _), footer in zip(files, footers, strict=True) if view == 0)
    broken = sorted({(item.image_id, item.path, item.reason) for footer in footers for item in footer.broken})
    _write_quarantine(folder, broken)
    if images == 0:
        first = f" The first of {len(broken)} reasons: {broken[0][1]}: {broken[0][2]}" if broken else ""
        raise DataError(f"no image could be read, see {folder}/quarantine.parquet.{first}")
    counts = {
        "images": images,
        "rows": sum(footer.rows for footer in footers),
        "parts": len(files),
        "quarantined": len(broken),
    }
    result = {"format": storage.FORMAT} | asdict(form) | dict(metadata) | counts
    storage.write_json(storage.join(folder, storage.LAST_FILE), result)
    return result


def _write_quarantine(folder: str, broken: Sequence[tuple[str, str, str]]) -> None:
    columns = {name: pa.array([row[number] for row in broken], pa.string()) for number, name in enumerate(QUARANTINE)}
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer, compression="zstd")
    storage.write_bytes(storage.join(folder, "quarantine.parquet"), buffer.getvalue())
