"""Granularity tokens as Parquet: one row an image and view, one part a read unit and view.

    image_id string | view int8 | label int16 | content fixed_size_list<uint16, 2L - 1> | structure
    fixed_size_list<uint8 or uint16, L> | features fixed_size_list<float16, L * D> (with representation alignment alone)

content holds the tokens of all stages side by side, coarse to fine; structure the K-bit codes in raster order. A part's
schema metadata names the tokenizer, the sizes, the class names, the images, and what of its unit could not be read. A
part is written atomically under a name that follows from (unit, view): a restart writes the parts that are missing, and
nothing can be there twice. `metadata.json` is written when all are there.

    part-000003-view0.parquet                a unit of at most data.unit_images images: nearly every one
    part-000004-view0-0000.parquet ...       pieces of a larger unit (a tar shard, which cannot be cut beforehand), of
    part-000004-view0-0002-last.parquet      which the last says that it is; without all of them the unit is not there
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nvg import storage
from nvg.data.records import BrokenImage
from nvg.errors import DataError, StorageError

COMPRESSION_LEVEL = 3
PART = re.compile(r"part-(\d{6,})-view(\d+)(?:-(\d{4,})(-last)?)?\.parquet$")
MOST_STAGES = 10  # K of 1,024 positions
COUNTS = ("views", "images", "rows", "parts", "quarantined")  # of metadata.json
Place = tuple[int, int]  # unit, view


@dataclass(frozen=True)
class TokenFormat:
    """What a token set is made of, in every part's metadata."""

    fingerprint: str  # of the tokenizer's weights
    last_stage: int  # K
    positions: int  # L
    codebook_size: int  # V
    class_names: list[str]
    feature_width: int | None = None  # D, of alignment features
    source: str = ""  # what is tokenized and how it is cut: parts of other images do not belong together

    def __post_init__(self) -> None:
        if not (1 <= self.last_stage <= MOST_STAGES and self.positions == 2**self.last_stage):
            raise ValueError(f"{self.positions} positions are not 2^{self.last_stage}, or too many")
        if not 2 <= self.codebook_size <= 2**16 or not 1 <= (self.feature_width or 1) <= 2**16:
            raise ValueError(f"codebook_size={self.codebook_size}, feature_width={self.feature_width}")

    def schema(self) -> pa.Schema:
        """The Arrow schema of a part."""
        structure = pa.uint8() if self.last_stage <= 8 else pa.uint16()
        fields = [
            ("image_id", pa.string()),
            ("view", pa.int8()),
            ("label", pa.int16()),
            ("content", pa.list_(pa.uint16(), 2 * self.positions - 1)),
            ("structure", pa.list_(structure, self.positions)),
        ]
        if self.feature_width is not None:
            fields.append(("features", pa.list_(pa.float16(), self.positions * self.feature_width)))
        return pa.schema(fields)


def part_name(unit: int, view: int, piece: int = 0, last: bool = True) -> str:
    """The file of a unit's view, or of a piece of it."""
    name = f"part-{unit:06d}-view{view}"
    if piece or not last:
        name += f"-{piece:04d}" + ("-last" if last else "")
    return f"{name}.parquet"


def parts(folder: str) -> dict[Place, list[str]]:
    """The units and views that are there whole: (unit, view) -> paths or URLs of the pieces, in order."""
    found: dict[Place, dict[int, str]] = {}
    ends: dict[Place, int] = {}
    for file in storage.list_files(folder, (".parquet",)):
        match = PART.search(file)
        if match is None:
            continue
        place, piece = (int(match[1]), int(match[2])), int(match[3] or 0)
        if match[3] is None or match[4]:
            ends[place] = piece
        found.setdefault(place, {})[piece] = file
    return {
        place: [found[place][piece] for piece in range(last + 1)]
        for place, last in sorted(ends.items())
        if set(range(last + 1)) <= set(found[place])
    }


def write_part(
    folder: str, form: TokenFormat, name: str, view: int, columns: Mapping[str, Any], broken: Sequence[BrokenImage]
) -> int:
    """Write a part atomically; returns its bytes.

    name: of part_name. columns: image_id (list), label (n,), content (n, 2L - 1), structure (n, L) and, where the
    format has them, features (n, L * D). The same columns give the same bytes.
    """
    schema = form.schema()
    count = len(columns["image_id"])
    arrays = [pa.array(columns["image_id"], pa.string()), pa.array(np.full(count, view, np.int8))]
    arrays.append(pa.array(np.asarray(columns["label"], np.int16)))
    for column in schema.names[3:]:
        kind = schema.field(column).type
        flat = np.ascontiguousarray(columns[column]).astype(kind.value_type.to_pandas_dtype(), copy=False).reshape(-1)
        arrays.append(pa.FixedSizeListArray.from_arrays(pa.array(flat, kind.value_type), kind.list_size))
    metadata = {
        "nvg": json.dumps(asdict(form), sort_keys=True),
        "quarantine": json.dumps([asdict(item) for item in broken], sort_keys=True),
    }
    table = pa.Table.from_arrays(arrays, schema=schema.with_metadata(metadata))
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", compression_level=COMPRESSION_LEVEL, write_page_checksum=True)
    storage.write_bytes(storage.join(folder, name), buffer.getvalue())
    return buffer.tell()


def read_part(path: str, fingerprint: str | None = None) -> pa.Table:
    """A part. Raises DataError when it is no token part, or one of another tokenizer than `fingerprint`."""
    try:
        with storage.open(path) as file:
            table = pq.read_table(file, page_checksum_verification=True)
    except (pa.ArrowException, ValueError, OSError) as error:
        if isinstance(error, FileNotFoundError | StorageError):
            raise
        raise DataError(f"{path} is damaged ({error}): remove it and run build_tokens again") from None
    form = part_format(table.schema, path)
    if not table.schema.equals(form.schema()) or any(column.null_count for column in table.columns):
        raise DataError(f"{path} has not the columns that its metadata names, or gaps in them: run build_tokens again")
    if fingerprint is not None and form.fingerprint != fingerprint:
        raise DataError(
            f"{path} holds tokens of tokenizer {form.fingerprint}, not of {fingerprint}: run build_tokens for this one"
        )
    return table


def part_format(schema: pa.Schema, path: str) -> TokenFormat:
    """The format that a part's schema names. Raises DataError when it is not one of ours."""
    raw = (schema.metadata or {}).get(b"nvg")
    if raw is None:
        raise DataError(f"{path} is no token part: its schema has no `nvg` metadata")
    return storage.parse_record(TokenFormat, raw, f"{path}: the `nvg` metadata", DataError)


def part_quarantine(schema: pa.Schema, path: str) -> list[BrokenImage]:
    """What of a part's unit could not be read. Raises DataError."""
    raw = b'{"items": %s}' % (schema.metadata or {}).get(b"quarantine", b"")
    return storage.parse_record(_Quarantine, raw, f"{path}: the quarantine", DataError).items


@dataclass(frozen=True)
class _Quarantine:
    items: list[BrokenImage]


def to_arrays(table: pa.Table) -> dict[str, np.ndarray]:
    """The columns that training reads: codes (n, L) and content (n, 2L - 1) int64, labels (n,) int64 and, where there,
    features (n, L * D) float16."""
    names = {"structure": "codes", "content": "content", "label": "labels", "features": "features"}
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
        result[name] = values if values.dtype == np.float16 else values.astype(np.int64)
    return result


def read_metadata(folder: str) -> dict[str, Any]:
    """`metadata.json` of a finished token set. Raises DataError when it is not there."""
    path = storage.join(folder, storage.LAST_FILE)
    if not storage.exists(path):
        raise DataError(f"{folder} holds no finished token set ({storage.LAST_FILE} is missing): run build_tokens")
    try:
        about = storage.read_json(path)
    except ValueError as error:
        raise DataError(f"{error}: run build_tokens again") from None
    if not isinstance(about, dict) or not all(type(about.get(name)) is int and about[name] >= 0 for name in COUNTS):
        raise DataError(f"{path} is damaged: {', '.join(COUNTS)} must be counts: run build_tokens again")
    metadata_format(about, path)
    return about


def metadata_format(about: Mapping[str, Any], path: str) -> TokenFormat:
    """The format that metadata.json names. Raises DataError."""
    names = {item.name for item in fields(TokenFormat)} & about.keys()
    return storage.parse_record(TokenFormat, json.dumps({name: about[name] for name in names}), path, DataError)


@dataclass(frozen=True)
class PartSummary:
    """What the footer of a part says."""

    rows: int
    broken: list[BrokenImage]


def look(files: Iterable[str], form: TokenFormat, folder: str) -> list[PartSummary]:
    """The footers of parts, in order. Raises DataError where one is damaged, or made of something else than `form`."""

    def read(path: str) -> PartSummary:
        try:
            with storage.open(path) as file:
                metadata = pq.read_metadata(file)
            schema = metadata.schema.to_arrow_schema()
        except (pa.ArrowException, ValueError, OSError) as error:
            if isinstance(error, FileNotFoundError | StorageError):
                raise
            raise DataError(f"{path} is damaged ({error}): remove it and run build_tokens again") from None
        found = part_format(schema, path)
        if found.fingerprint != form.fingerprint:
            what = f"of tokenizer {found.fingerprint}, not of {form.fingerprint}"
        elif found != form:
            what = "of other images or settings"
        else:
            return PartSummary(metadata.num_rows, part_quarantine(schema, path))
        raise DataError(f"{path} is {what}: remove {folder}, or give another output, and run build_tokens again")

    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(read, files))


def finish(folder: str, form: TokenFormat, wanted: set[Place], about: Mapping[str, Any]) -> dict[str, Any]:
    """Check that the units and views that are wanted are there, write quarantine.parquet (one row a broken image,
    whatever the views) and, last, metadata.json; returns what metadata.json holds. Raises DataError."""
    there = parts(folder)
    if set(there) != wanted:
        odd = sorted(set(there) ^ wanted)[:3]
        raise DataError(
            f"{folder} holds {len(there)} parts where {len(wanted)} belong (unit, view: {odd}, ...): remove what "
            "does not belong and run build_tokens again"
        )
    found = iter(look([path for paths in there.values() for path in paths], form, folder))
    files = {place: [next(found) for _ in paths] for place, paths in there.items()}
    images = sum(part.rows for (_, view), pieces in files.items() for part in pieces if view == 0)
    total = sum(part.rows for pieces in files.values() for part in pieces)
    everything = [item for pieces in files.values() for part in pieces for item in part.broken]
    broken = sorted({(item.image_id, item.path, item.reason) for item in everything})
    names = ("image_id", "path", "reason")
    table = pa.table({name: pa.array([row[i] for row in broken], pa.string()) for i, name in enumerate(names)})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    storage.write_bytes(storage.join(folder, "quarantine.parquet"), buffer.getvalue())
    if images == 0:
        first = f" The first of {len(broken)} reasons: {broken[0][1]}: {broken[0][2]}" if broken else ""
        raise DataError(f"no image could be read, see {folder}/quarantine.parquet.{first}")
    counts = {"images": images, "rows": total, "parts": sum(map(len, there.values())), "quarantined": len(broken)}
    result = asdict(form) | dict(about) | counts
    storage.write_json(storage.join(folder, storage.LAST_FILE), result)
    return result
