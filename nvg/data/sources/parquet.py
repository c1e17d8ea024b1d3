"""Parquet with image bytes and labels: the layout that dataset hubs use.

`data.train` is a file, a folder or a pattern (`.../train-*.parquet`). data.image_column is a struct
{bytes, path} or plain
bytes, data.label_column an integer or a string. Class names come from the hub's schema metadata (`huggingface` →
features → names), from string labels (sorted), else data.class_names or the numbers. A row group is a unit.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from nvg import storage
from nvg.config import DataConfig
from nvg.data.records import BrokenImage, DataError, ImageRecord, ImageSource, Unit


class ParquetSource(ImageSource):
    """An image's id is its file's name and its row."""

    def __init__(self, config: DataConfig, path: str) -> None:
        self.image_column, self.label_column = config.image_column, config.label_column
        self.files = storage.expand(path, (".parquet",))
        self.broken: list[str] = []
        self.units: list[Unit] = []
        names: list[str] | None = None
        strings: set[str] = set()
        for file in self.files:
            try:
                with storage.open(file) as stream, pq.ParquetFile(stream) as table:
                    schema = table.schema_arrow
                    for column, key in ((self.image_column, "image_column"), (self.label_column, "label_column")):
                        if column not in schema.names:
                            raise DataError(
                                f"{file} has no column {column!r} but {schema.names}: set data.{key} to one of them"
                            )
                    names = names or _hub_names(schema, self.label_column)
                    if pa.types.is_string(schema.field(self.label_column).type):
                        strings |= set(table.read(columns=[self.label_column])[self.label_column].unique().to_pylist())
                    start = 0
                    for group in range(table.num_row_groups):
                        rows = table.metadata.row_group(group).num_rows
                        for first in range(0, rows, config.unit_images):
                            stop = min(first + config.unit_images, rows)
                            self.units.append(
                                {"file": file, "group": group, "first": first, "stop": stop, "row": start + first}
                            )
                        start += rows
            except (pa.ArrowException, OSError) as error:
                if isinstance(error, FileNotFoundError):
                    raise
                self.units.append({"file": file, "broken": f"not a readable Parquet file: {error}"})
        text = sorted(strings - {None})  # type: ignore[arg-type]
        self.label_of = {name: label for label, name in enumerate(text)}
        self.class_names = text or names or list(config.class_names or map(str, range(config.num_classes)))

    def read(self, unit: Unit) -> Iterator[ImageRecord | BrokenImage]:
        file = unit["file"]
        short = file.rsplit("/", 1)[-1]
        if "broken" in unit:
            yield BrokenImage(short, file, unit["broken"])
            return
        try:
            with storage.open(file) as stream, pq.ParquetFile(stream) as table:
                group = table.read_row_group(unit["group"], columns=[self.image_column, self.label_column])
                rows = group.slice(unit["first"], unit["stop"] - unit["first"])
        except (pa.ArrowException, OSError) as error:
            yield BrokenImage(f"{short}/{unit['row']}", file, f"row group {unit['group']} cannot be read: {error}")
            return
        images, labels = rows[self.image_column], rows[self.label_column]
        for number in range(rows.num_rows):
            place = f"{file}#{unit['row'] + number}"
            image_id = f"{short}/{unit['row'] + number}"
            image, label = images[number].as_py(), self._label(labels[number].as_py())
            data = image.get("bytes") if isinstance(image, dict) else image
            if not isinstance(data, bytes):
                yield BrokenImage(image_id, place, f"column {self.image_column!r} holds no bytes")
            elif label is None or not 0 <= label < len(self.class_names):
                yield BrokenImage(image_id, place, f"class {label} is none of 0 ... {len(self.class_names) - 1}")
            else:
                yield ImageRecord(image_id, data, label, place)

    def _label(self, value: Any) -> int | None:
        if isinstance(value, str):
            return self.label_of.get(value)
        return int(value) if value is not None else None

    def count(self) -> int:
        return sum(unit["stop"] - unit["first"] for unit in self.units if "broken" not in unit)

    def fingerprint(self) -> str:
        return storage.fingerprint(self.files)


def _hub_names(schema: pa.Schema, column: str) -> list[str] | None:
    """Class names that a dataset hub wrote into the schema's metadata."""
    raw = (schema.metadata or {}).get(b"huggingface")
    if raw is None:
        return None
    try:
        return list(json.loads(raw)["info"]["features"][column]["names"])
    except (ValueError, KeyError, TypeError):
        return None
