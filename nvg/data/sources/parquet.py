"""Parquet with image bytes and labels: the layout that dataset hubs use.

`data.train` is a file, a folder or a pattern (`.../train-*.parquet`) of one split. data.image_column is a struct
{bytes, path} or plain bytes, data.label_column whole numbers (of any type) or strings. Class names come from the hub's
schema metadata (`huggingface` → features → names), from string labels (sorted), else data.class_names or the numbers. A
file's numbers go by the names in that file. A unit is a run of row groups of one file that hold about data.unit_images
rows, or a piece of a row group that holds more.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from nvg import storage
from nvg.config import DataConfig
from nvg.data.classes import TrainingClasses, check_known, class_name, in_order, told_apart, whole_number
from nvg.data.records import BrokenImage, ImageRecord, ImageSource, Unit
from nvg.data.sources.splits import files_of_one_split
from nvg.errors import DataError, StorageError

READ_ROWS = 32  # rows whose images are in memory at once


class ParquetSource(ImageSource):
    """An image's id is its file's path below the set's folder, and its row."""

    def __init__(self, config: DataConfig, path: str, training: TrainingClasses | None = None) -> None:
        self.image_column, self.label_column = config.image_column, config.label_column
        self.files = files_of_one_split(path, (".parquet",))
        self.prefix = storage.common_folder(self.files)
        with ThreadPoolExecutor(16) as pool:
            every = pool.map(lambda file: _describe(file, self.image_column, self.label_column), self.files)
            tables = dict(zip(self.files, every, strict=True))
        self.classes = _classes(tables) if training is None else training()
        if not self.classes and config.class_names and any(table.present for table in tables.values()):
            self.classes = [class_name(name) for name in config.class_names]  # training images have numbers alone
        _check_agreement(tables, config, self.classes)
        for file, table in tables.items():
            check_known(table.present, self.classes, file)
        self.class_names = list(self.classes)
        self.count_of_classes = len(self.classes) or config.num_classes
        self.label_of = {name: label for label, name in enumerate(self.classes)}
        numbers = sorted(number for table in tables.values() for number in table.numbers if number >= 0)
        self.lowest, self.highest = (numbers[0], numbers[-1]) if numbers else (None, None)
        self.units: list[Unit] = []
        for file, table in tables.items():
            # A file's own order of the classes goes with its units where it is another one.
            order = {} if table.names in (None, self.classes) else {"names": table.names}
            self.units += [{"file": file, **piece, **order} for piece in _pieces(table.groups, config.unit_images)]
            if table.broken:
                self.units.append({"file": file, "broken": table.broken})

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
                        yield self._record(unit, row, image.as_py(), label.as_py())
                    row += 1

    def _record(self, unit: Unit, row: int, image: Any, value: Any) -> ImageRecord | BrokenImage:
        image_id, path = f"{unit['file'].removeprefix(self.prefix)}/{row}", f"{unit['file']}#{row}"
        data = image.get("bytes") if isinstance(image, dict) else image
        if not isinstance(data, bytes):
            link = image.get("path") if isinstance(image, dict) else None
            hint = f", only the path {link!r}: write the images into the file" if link else ""
            return BrokenImage(image_id, path, f"column {self.image_column!r} holds no bytes{hint}")
        if value is None:
            return BrokenImage(image_id, path, f"no class: column {self.label_column!r} is null")
        try:
            label = self._label(value, unit.get("names"))
        except ValueError as error:
            return BrokenImage(image_id, path, f"no class: {error}")
        if label is None:
            return BrokenImage(image_id, path, f"class {value} is none of 0 ... {self.count_of_classes - 1}")
        return ImageRecord(image_id, data, label, path)

    def _label(self, value: Any, names: list[str] | None) -> int | None:
        """The label that a value of the column stands for, None for one out of range. names: of the file's numbers,
        where they are not the set's. Raises ValueError for a value that is no class."""
        if isinstance(value, str):
            return self.label_of.get(class_name(value))
        number = whole_number(value)
        if not 0 <= number < (len(names) if names else self.count_of_classes):
            return None
        return self.label_of.get(names[number]) if names else number

    def _size(self, unit: Unit) -> int:
        if "broken" in unit:
            return 0
        return unit["stop"] - unit["first"] if "stop" in unit else unit["rows"]


@dataclass
class _Table:
    """The contents of a file, read from its footer and its column of labels."""

    groups: list[int] = field(default_factory=list)  # rows of each row group
    names: list[str] | None = None  # of its numbers
    repeats: bool = False  # whether two of them were one name
    strings: set[str] = field(default_factory=set)  # its labels, where they are strings ...
    numbers: set[int] = field(default_factory=set)  # ... or numbers
    broken: str = ""

    @property
    def present(self) -> set[str]:
        """The names of the classes that it has images of, as far as names tell them."""
        names = self.names or []
        return self.strings | {names[number] for number in self.numbers if 0 <= number < len(names)}


def _classes(tables: Mapping[str, _Table]) -> list[str]:
    """The classes of a set's files: the names of their numbers in the first file's order, then their strings."""
    named = [name for table in tables.values() for name in table.names or ()]
    strings = set[str]().union(*(table.strings for table in tables.values())).difference(named)
    return [*dict.fromkeys(named), *in_order(strings)]


def _check_agreement(tables: Mapping[str, _Table], config: DataConfig, classes: list[str]) -> None:
    """Raises DataError where one file's labels cannot be told by another one's names."""
    bare = next((file for file, table in tables.items() if table.numbers and table.names is None), None)
    named = next((file for file, table in tables.items() if table.names or table.strings), None)
    if config.class_names is None and (bare if classes else named):
        raise DataError(
            f"{named or 'data.train'} names its classes and {bare or 'data.train'} has numbers without names: write "
            "both with the same kind of labels, or name all classes in data.class_names, in the order of the numbers"
        )
    for file, table in tables.items():
        if table.repeats and table.names != classes:
            raise DataError(
                f"{file} has two classes of one name and other files have other names or another order: which of the "
                "two is meant cannot be told; write all files with the same names"
            )


def _describe(file: str, image_column: str, label_column: str) -> _Table:
    """Describe a file. Raises DataError for columns that are missing or of another type."""
    result = _Table()
    try:
        with storage.open(file) as stream, pq.ParquetFile(stream) as table:
            schema = table.schema_arrow
            _check_columns(file, schema, image_column, label_column)
            result.groups = [table.metadata.row_group(group).num_rows for group in range(table.num_row_groups)]
            values = _unique(table.read(columns=[label_column])[label_column])
            result.strings = {class_name(value) for value in values if isinstance(value, str)}
            result.numbers = _whole(values)
            names = None if result.strings else _hub_names(schema, label_column)
            if names:
                result.names, result.repeats = told_apart(names), len(set(names)) < len(names)
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, StorageError):
            raise
        result = _Table(broken=f"not a readable Parquet file: {error}")
    return result


def _unique(column: pa.ChunkedArray) -> list[Any]:
    """The values of a column, each once."""
    if pa.types.is_float16(column.type):  # for which pyarrow has no `unique`
        column = column.cast(pa.float32())
    if pa.types.is_string_view(column.type):  # of which its `unique` takes nulls for ""
        column = column.cast(pa.large_string())
    return column.unique().to_pylist()


def _whole(values: list[Any]) -> set[int]:
    """The whole numbers among some values of a column."""
    numbers = set()
    for value in values:
        with contextlib.suppress(ValueError):  # a null, a fraction
            numbers.add(whole_number(None if isinstance(value, str) else value))
    return numbers


def _check_columns(file: str, schema: pa.Schema, image_column: str, label_column: str) -> None:
    """Raises DataError where a column is missing, images are no bytes, or labels neither numbers nor strings."""
    for column, key in ((image_column, "image_column"), (label_column, "label_column")):
        if column not in schema.names:
            raise DataError(f"{file} has no column {column!r} but {schema.names}: set data.{key} to one of them")
    types = pa.types
    image, label = schema.field(image_column).type, schema.field(label_column).type
    if types.is_struct(image) and image.get_field_index("bytes") >= 0:
        image = image.field("bytes").type
    of_bytes = (types.is_binary, types.is_large_binary, types.is_binary_view, types.is_null)
    if not any(holds(image) for holds in of_bytes):
        raise DataError(f"{file}: column {image_column!r} is {image}, not bytes: set data.image_column")
    label = label.value_type if types.is_dictionary(label) else label
    numbers = (types.is_integer, types.is_floating, types.is_decimal, types.is_boolean, types.is_null)
    strings = (types.is_string, types.is_large_string, types.is_string_view)
    if not any(holds(label) for holds in numbers + strings):
        raise DataError(f"{file}: column {label_column!r} is {label}, no class: set data.label_column")


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
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return None
    return [class_name(name) for name in names]
