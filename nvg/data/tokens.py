"""Granularity tokens as Parquet: one row an image and view, one part a read unit and view.

    image_id string | view int8 | label int16 | content fixed_size_list<uint16, 2L - 1> | structure
    fixed_size_list<uint8 or uint16, L> | features fixed_size_list<float16, L * D> (with representation alignment alone)

content holds the tokens of all stages side by side, coarse to fine; structure the K-bit codes in raster order. A part's
schema metadata names the tokenizer, the sizes, the class names, and what of its unit could not be read. A part is
written atomically under a name that follows from (unit, view): a restart writes the parts that are missing, and nothing
can be there twice. `metadata.json` is written when all are there.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nvg import storage
from nvg.data.records import BrokenImage, DataError

COMPRESSION_LEVEL = 3
PART = re.compile(r"part-(\d{6})-view(\d+)\.parquet$")


@dataclass(frozen=True)
class TokenFormat:
    """What a token set is made of, in every part's metadata."""

    fingerprint: str  # of the tokenizer's weights
    last_stage: int  # K
    positions: int  # L
    codebook_size: int  # V
    class_names: list[str]
    feature_width: int | None = None  # D, of alignment features

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


def part_name(unit: int, view: int) -> str:
    """The file of a unit's view."""
    return f"part-{unit:06d}-view{view}.parquet"


def parts(folder: str) -> dict[tuple[int, int], str]:
    """The parts that are there: (unit, view) -> path or URL."""
    found = {}
    for file in storage.list_files(folder, (".parquet",)):
        match = PART.search(file)
        if match:
            found[int(match[1]), int(match[2])] = file
    return found


def write_part(
    folder: str, form: TokenFormat, unit: int, view: int, columns: dict[str, Any], broken: Sequence[BrokenImage]
) -> int:
    """Write a part atomically; returns its bytes.

    columns: image_id (list), label (n,), content (n, 2L - 1), structure (n, L) and, where the format has them,
    features (n, L * D). The same columns give the same bytes.
    """
    schema = form.schema()
    count = len(columns["image_id"])
    arrays = [pa.array(columns["image_id"], pa.string()), pa.array(np.full(count, view, np.int8))]
    arrays.append(pa.array(np.asarray(columns["label"], np.int16)))
    for name in schema.names[3:]:
        kind = schema.field(name).type
        flat = np.ascontiguousarray(columns[name]).astype(kind.value_type.to_pandas_dtype(), copy=False).reshape(-1)
        arrays.append(pa.FixedSizeListArray.from_arrays(pa.array(flat, kind.value_type), kind.list_size))
    metadata = {
        "nvg": json.dumps(asdict(form), sort_keys=True),
        "quarantine": json.dumps([asdict(item) for item in broken], sort_keys=True),
    }
    table = pa.Table.from_arrays(arrays, schema=schema.with_metadata(metadata))
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", compression_level=COMPRESSION_LEVEL)
    storage.write_bytes(storage.join(folder, part_name(unit, view)), buffer.getvalue())
    return buffer.tell()


def read_part(path: str, fingerprint: str | None = None) -> pa.Table:
    """A part. Raises DataError when it is no token part, or one of another tokenizer than `fingerprint`."""
    try:
        with storage.open(path) as file:
            table = pq.read_table(file)
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise DataError(f"{path} is damaged ({error}): remove it and run build_tokens again") from None
    form = part_format(table.schema, path)
    if fingerprint is not None and form.fingerprint != fingerprint:
        raise DataError(f"{path} holds tokens of tokenizer {form.fingerprint}, not of {fingerprint}")
    return table


def part_format(schema: pa.Schema, path: str) -> TokenFormat:
    """The format that a part's schema names. Raises DataError when it is not one of ours."""
    raw = (schema.metadata or {}).get(b"nvg")
    if raw is None:
        raise DataError(f"{path} is no token part: its schema has no `nvg` metadata")
    return TokenFormat(**json.loads(raw))


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
    return storage.read_json(path)


def finish(folder: str, form: TokenFormat, about: dict[str, Any]) -> dict[str, Any]:
    """Count the parts, write quarantine.parquet and, last, metadata.json; returns what metadata.json holds."""

    def look(item: tuple[tuple[int, int], str]) -> tuple[int, int, list[dict[str, str]]]:
        (_, view), path = item
        with storage.open(path) as file:
            metadata = pq.read_metadata(file)
        schema = metadata.schema.to_arrow_schema()
        found = part_format(schema, path)
        if found != form:
            raise DataError(f"{path} is of another tokenizer or data set: remove {folder} and run build_tokens again")
        return view, metadata.num_rows, json.loads(schema.metadata[b"quarantine"])

    with ThreadPoolExecutor(16) as pool:
        looks = list(pool.map(look, sorted(parts(folder).items())))
    images = sum(rows for view, rows, _ in looks if view == 0)
    broken = {(item["image_id"], item["path"], item["reason"]) for _, _, items in looks for item in items}
    names = ("image_id", "path", "reason")
    rows = sorted(broken)
    table = pa.table({name: pa.array([row[i] for row in rows], pa.string()) for i, name in enumerate(names)})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    storage.write_bytes(storage.join(folder, "quarantine.parquet"), buffer.getvalue())
    if images == 0:
        first = f" The first of {len(rows)} reasons: {rows[0][1]}: {rows[0][2]}" if rows else ""
        raise DataError(f"no image could be read, see {folder}/quarantine.parquet.{first}")
    result = (
        asdict(form)
        | about
        | {"images": images, "rows": sum(rows for _, rows, _ in looks), "parts": len(looks), "quarantined": len(rows)}
    )
    storage.write_json(storage.join(folder, storage.LAST_FILE), result)
    return result
