"""Image sources: one file per layout, one interface (nvg/data/records.py)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from nvg import storage
from nvg.config import DataConfig
from nvg.data.records import ImageSource
from nvg.data.sources.folder import FolderSource
from nvg.data.sources.idx import IdxSource
from nvg.data.sources.ilsvrc import IlsvrcSource
from nvg.data.sources.parquet import ParquetSource
from nvg.data.sources.webdataset import WebDatasetSource
from nvg.errors import DataError

SOURCES: dict[str, Callable[[DataConfig, str], ImageSource]] = {
    "folder": FolderSource,
    "idx": IdxSource,
    "ilsvrc": IlsvrcSource,
    "parquet": ParquetSource,
    "webdataset": WebDatasetSource,
}


def open_source(config: DataConfig, split: str) -> ImageSource:
    """The images of a split, "train" or "test", as the configuration names them.

    Raises DataError when the split is not configured, holds no images, or another number of classes than
    data.num_classes; FileNotFoundError when the path does not exist.
    """
    path = config.train if split == "train" else config.test
    if path is None:
        raise DataError(f"data.{split} is not set: give the path or URL of the {split} images")
    where = f"data.{split}={path}"
    try:
        source = SOURCES[config.source](config, path)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{where}: {error}") from None
    if not source.units:
        reason = f"holds no images that data.source={config.source} can read"
        raise DataError(f"{where} {reason if storage.exists(path) else 'is not there'}")
    _name_classes(source, config, split, where)
    if split == "train" and config.limit is not None:
        source.limit(config.limit)
    return source


def _name_classes(source: ImageSource, config: DataConfig, split: str, where: str) -> None:
    """Set and check the source's class names. Raises DataError."""
    if split == "train" and source.empty:
        count = len(source.empty)
        raise DataError(
            f"{where} has no image of {count} of the {config.num_classes} classes ({_first(source.empty)}): fetch them "
            f"again, or set data.num_classes={config.num_classes - count} to do without"
        )
    if source.class_names:
        _check_names(source, config, where)
        source.class_names = list(config.class_names or source.class_names)
    else:
        _check_highest(source, config, split, where)
        source.class_names = list(config.class_names or map(str, range(config.num_classes)))


def _first(names: Sequence[str]) -> str:
    """The first ten names, for a message."""
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")


def _check_names(source: ImageSource, config: DataConfig, where: str) -> None:
    """Raises DataError where the classes that a source names are not those of the configuration."""
    names, configured = source.class_names, config.class_names
    if len(names) != config.num_classes:
        empty = set(storage.list_folders(source.root)) - set(names) if isinstance(source, FolderSource) else set()
        hint = f"; without images: {', '.join(sorted(empty)[:10])}" if empty else ""
        raise DataError(
            f"{where} has {len(names)} classes ({_first(names)}{hint}), but data.num_classes={config.num_classes}: "
            f"set data.num_classes={len(names)}"
        )
    if configured is not None and configured != names and sorted(configured) == sorted(names):
        raise DataError(
            f"{where} has the classes of data.class_names in another order ({', '.join(names[:10])}, ...), which is "
            "the order of its labels: leave data.class_names out"
        )


def _check_highest(source: ImageSource, config: DataConfig, split: str, where: str) -> None:
    """Raises DataError where the labels of a source without names do not fit the number of classes."""
    if source.highest is None:
        return
    classes = source.highest + 1
    # Held-out images need not show every class, and class_names say how many there are.
    fewer = classes < config.num_classes and split == "train" and config.class_names is None
    if classes > config.num_classes or fewer:
        raise DataError(
            f"{where} has the labels 0 ... {source.highest}, but data.num_classes={config.num_classes}: set "
            f"data.num_classes={classes}" + (", or name all classes in data.class_names" if fewer else "")
        )
