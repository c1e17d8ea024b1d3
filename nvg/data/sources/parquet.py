"""Parquet with image bytes and labels: the layout that dataset hubs use.

`data.train` is a file, a folder or a pattern (`.../train-*.parquet`). data.image_column is a struct {bytes, path} or
plain bytes, data.label_column an integer or a string. Class names come from the hub's schema metadata (`huggingface` →
features → names), from string labels (sorted), else data.class_names or the numbers. A unit is a run of row groups of
one file that hold about data.unit_images rows, or a piece of a row group that holds more.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nvg import storage
from nvg.config import DataConfig
from nvg.data.records import BrokenImage, ImageRecord, ImageSource, Unit
from nvg.errors import DataError, StorageError

READ_ROWS = 32  # rows whose images are in memory at once


class ParquetSource(ImageSource):
    """An image's id is its file's path below the set's folder, and its row."""

    def __init__(self, config: DataConfig, path: str) -> None:
        self.image_column, self.label_column = config.image_column, config.label_column
        self.files = storage.expand_sizes(path, (".parquet",))
        self.prefix = storage.common_folder(self.files)
        self.units: list[Unit] = []
        with ThreadPoolExecutor(16) as pool:
            tables = list(pool.map(lambda file: _describe(file, self.image_column, self.label_column), self.files))
        for file, table in zip(self.files, tables, strict=True):
            self.units += [{"file": file, **piece} for piece in _pieces(table.groups, config.unit_images)]
            if table.broken:
                self.units.append({"file": file, "broken": table.broken})
        strings = sorted(set().union(*(table.strings for table in tables)))
        highest: list[int] = [table.highest for table in tables if table.highest is not None]
        if strings and highest:
            raise DataError(f"{path}: column {self.label_column!r} holds numbers in some files and strings in others")
        self.label_of = {name: label for label, name in enumerate(strings)}
        self.class_names = strings or next((table.names for table in tables if table.names), [])
        self.highest = max(highest) if highest else None
        self.classes = len(self.class_names) or config.num_classes

    def _read(self, unit: Unit) -> Iterator[ImageRecord | BrokenImage]:
        short = unit["file"].removeprefix(self.prefix)
        if "broken" in unit:
            yield BrokenImage(short, unit["file"], unit["broken"])
            return
        row: int = unit["row"]  # of the file, at the beginning of a row group
        for group, rows in unit["groups"]:
            try:
                yield from self._group(unit, group, row)
            except (pa.ArrowException, OSError) as error:
                if isinstance(error, StorageError):
                    raise
                yield BrokenImage(f"{short}/{row}", unit["file"], f"row group {group} cannot be read on: {error}")
            row += rows

    def _group(self, unit: Unit, group: int, row: int) -> Iterator[ImageRecord | BrokenImage]:
        first = row + unit.get("first", 0)
        stop = row + (unit["stop"] if "stop" in unit else unit["rows"])
        columns = [self.image_column, self.label_column]
        with storage.open(unit["file"]) as stream, pq.ParquetFile(stream, pre_buffer=False) as table:
            for batch in table.iter_batches(READ_ROWS, row_groups=[group], columns=columns):
                if row >= stop:
                    return
                for image, label in zip(batch[self.image_column], batch[self.label_column], strict=True):
                    if first <= row < stop:
                        yield self._record(unit["file"], row, image.as_py(), label.as_py())
                    row += 1

    def _record(self, file: str, row: int, image: Any, value: Any) -> ImageRecord | BrokenImage:
        image_id, path = f"{file.removeprefix(self.prefix)}/{row}", f"{file}#{row}"
        data = image.get("bytes") if isinstance(image, dict) else image
        label = self.label_of.get(value) if isinstance(value, str) else value
        if not isinstance(data, bytes):
            return BrokenImage(image_id, path, f"column {self.image_column!r} holds no bytes")
        if label is None or not 0 <= label < self.classes:
            return BrokenImage(image_id, path, f"class {value} is none of 0 ... {self.classes - 1}")
        return ImageRecord(image_id, data, int(label), path)

    def _size(self, unit: Unit) -> int:
        if "broken" in unit:
            return 0
        return unit["stop"] - unit["first"] if "stop" in unit else unit["rows"]


@dataclass
class _Table:
    """The contents of a file, read from its footer and its column of labels."""

    groups: list[int] = field(default_factory=list)  # rows of each row group
    names: list[str] | None = None
    strings: set[str] = field(default_factory=set)
    highest: int | None = None
    broken: str = ""


def _describe(file: str, image_column: str, label_column: str) -> _Table:
    """Describe a file. Raises DataError for columns that are missing or of another type."""
    result = _Table()
    try:
        with storage.open(file) as stream, pq.ParquetFile(stream) as table:
            schema = table.schema_arrow
            text = _labels_are_text(file, schema, image_column, label_column)
            result.groups = [table.metadata.row_group(group).num_rows for group in range(table.num_row_groups)]
            result.names = None if text else _hub_names(schema, label_column)
            if text:
                values = table.read(columns=[label_column])[label_column]
                result.strings = {str(value) for value in values.unique().to_pylist() if value is not None}
            elif result.names is None:
                values = table.read(columns=[label_column])[label_column]
                highest = pc.max(values.cast(pa.int64())).as_py() if len(values) else None
                result.highest = highest if highest is not None and highest >= 0 else None
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, StorageError):
            raise
        result = _Table(broken=f"not a readable Parquet file: {error}")
    return result


def _labels_are_text(file: str, schema: pa.Schema, image_column: str, label_column: str) -> bool:
    """Whether the labels of a file are strings; else they are integers. Raises DataError for columns of other types."""
    for column, key in ((image_column, "image_column"), (label_column, "label_column")):
        if column not in schema.names:
            raise DataError(f"{file} has no column {column!r} but {schema.names}: set data.{key} to one of them")
    label, image = schema.field(label_column).type, schema.field(image_column).type
    label = label.value_type if pa.types.is_dictionary(label) else label
    if pa.types.is_struct(image) and image.get_field_index("bytes") >= 0:
        image = image.field("bytes").type
    if not (pa.types.is_binary(image) or pa.types.is_large_binary(image)):
        raise DataError(f"{file}: column {image_column!r} is {image}, not bytes: set data.image_column")
    text = pa.types.is_string(label) or pa.types.is_large_string(label)
    if not (text or pa.types.is_integer(label) or pa.types.is_boolean(label)):
        raise DataError(f"{file}: column {label_column!r} is {label}, no class: set data.label_column")
    return text


def _pieces(groups: list[int], unit_rows: int) -> Iterator[Unit]:
    """Row groups (given their rows) as units of about `unit_rows` rows: the file's row, groups, and rows or a piece."""
    row = 0
    taken: list[tuple[int, int]] = []
    for group, rows in enumerate(groups):
        size = sum(count for _, count in taken)
        if taken and size + rows > unit_rows:
            yield {"row": row - size, "groups": taken, "rows": size}
            taken = []
        if rows > unit_rows:
            for first in range(0, rows, unit_rows):
                piece = {"first": first, "stop": min(first + unit_rows, rows)}
                yield {"row": row, "groups": [(group, rows)], "rows": rows, **piece}
        elif rows:
            taken.append((group, rows))
        row += rows
    if taken:
        size = sum(count for _, count in taken)
        yield {"row": row - size, "groups": taken, "rows": size}


def _hub_names(schema: pa.Schema, column: str) -> list[str] | None:
    """Class names that a dataset hub wrote into the schema's metadata."""
    raw = (schema.metadata or {}).get(b"huggingface")
    if raw is None:
        return None
    try:
        names = json.loads(raw)["info"]["features"][column]["names"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else None
