"""Image sources: one file a layout, one interface (nvg/data/records.py)."""

from __future__ import annotations

from collections.abc import Callable

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
    data.num_classes; FileNotFoundError when the path is not there.
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
    given, own = config.class_names, source.class_names
    if split == "train" and source.empty:
        named, count = ", ".join(source.empty[:10]) + (", ..." if len(source.empty) > 10 else ""), len(source.empty)
        raise DataError(
            f"{where} has no image of {count} of the {config.num_classes} classes ({named}): fetch them again, or set "
            f"data.num_classes={config.num_classes - count} to do without"
        )
    if own:
        if len(own) != config.num_classes:
            names = ", ".join(own[:10]) + (", ..." if len(own) > 10 else "")
            empty = set(storage.list_folders(source.root)) - set(own) if isinstance(source, FolderSource) else set()
            hint = f"; without images: {', '.join(sorted(empty)[:10])}" if empty else ""
            raise DataError(
                f"{where} has {len(own)} classes ({names}{hint}), but data.num_classes={config.num_classes}: "
                f"set data.num_classes={len(own)}"
            )
        if given is not None and given != own and sorted(given) == sorted(own):
            raise DataError(
                f"{where} has the classes of data.class_names in another order ({', '.join(own[:10])}, ...), which is "
                "the order of its labels: leave data.class_names out"
            )
        source.class_names = list(given or own)
        return
    if source.highest is not None:
        classes = source.highest + 1
        # Held-out images need not show every class, and class_names say how many there are.
        fewer = classes < config.num_classes and split == "train" and given is None
        if classes > config.num_classes or fewer:
            raise DataError(
                f"{where} has the labels 0 ... {source.highest}, but data.num_classes={config.num_classes}: set "
                f"data.num_classes={classes}" + (", or name all classes in data.class_names" if fewer else "")
            )
    source.class_names = list(given or map(str, range(config.num_classes)))
