"""Image sources: one file per layout, one interface (nvg/data/records.py)."""

from __future__ import annotations

import functools
from collections.abc import Callable

from nvg import storage
from nvg.config import DataConfig
from nvg.data.classes import TrainingClasses, class_name, first, misplaced, told_apart
from nvg.data.records import ImageSource
from nvg.data.sources.folder import FolderSource
from nvg.data.sources.idx import IdxSource
from nvg.data.sources.ilsvrc import IlsvrcSource
from nvg.data.sources.parquet import ParquetSource
from nvg.data.sources.webdataset import WebDatasetSource
from nvg.errors import DataError

SOURCES: dict[str, Callable[[DataConfig, str, TrainingClasses | None], ImageSource]] = {
    "folder": FolderSource,
    "idx": IdxSource,
    "ilsvrc": IlsvrcSource,
    "parquet": ParquetSource,
    "webdataset": WebDatasetSource,
}


def open_source(config: DataConfig, split: str, training: ImageSource | None = None) -> ImageSource:
    """The images of a split, "train" or "test", as the configuration names them.

    The classes of test images are numbered as those of the training images are; some may be missing. training: the
    training images where they are open already, else they are listed for that.

    Raises DataError when the split is not configured, holds no images, or another number of classes than
    data.num_classes, or test images are of a class that training has not; FileNotFoundError when the path does not
    exist.
    """
    path = config.train if split == "train" else config.test
    if path is None:
        raise DataError(f"data.{split} is not set: give the path or URL of the {split} images")
    where = f"data.{split}={path}"
    classes = None
    # Where there are no training images nothing knows their classes: samplers are evaluated on other machines too.
    if split != "train" and (training is not None or storage.exists(config.train)):
        classes = functools.partial(_training_classes, config, training)
    try:
        source = SOURCES[config.source](config, path, classes)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{where}: {error}") from None
    if not source.units:
        reason = f"holds no images that data.source={config.source} can read"
        raise DataError(f"{where} {reason if storage.exists(path) else 'is not there'}")
    _name_classes(source, config, split, where)
    if split == "train" and config.limit is not None:
        source.limit(config.limit)
    return source


def _training_classes(config: DataConfig, training: ImageSource | None) -> list[str]:
    """The classes of the training images, which are listed where they are not open yet."""
    return (training or SOURCES[config.source](config, config.train, None)).classes


def _name_classes(source: ImageSource, config: DataConfig, split: str, where: str) -> None:
    """Set and check the source's class names. Raises DataError."""
    if split == "train" and source.empty:
        count = len(source.empty)
        raise DataError(
            f"{where} has no image of {count} of the {config.num_classes} classes ({first(source.empty)}): fetch them "
            f"again, or set data.num_classes={config.num_classes - count} to do without"
        )
    if source.classes:
        _check_names(source, config, where)
    _check_numbers(source, config, split, where)
    names = config.class_names or source.class_names or list(map(str, range(config.num_classes)))
    source.class_names = told_apart([class_name(name) for name in names])


def _check_names(source: ImageSource, config: DataConfig, where: str) -> None:
    """Raises DataError where the classes that a source names are not those of the configuration."""
    names = source.class_names
    if len(names) != config.num_classes:
        empty = set(storage.list_folders(source.root)) - set(names) if isinstance(source, FolderSource) else set()
        hint = f"; without images: {', '.join(sorted(empty)[:10])}" if empty else ""
        raise DataError(
            f"{where} has {len(names)} classes ({first(names)}{hint}), but data.num_classes={config.num_classes}: "
            f"set data.num_classes={len(names)}"
        )
    if misplaced([class_name(name) for name in config.class_names or ()], names):
        raise DataError(
            f"{where} has the classes of data.class_names in another order ({', '.join(names[:10])}, ...), which is "
            "the order of its labels: leave data.class_names out"
        )


def _check_numbers(source: ImageSource, config: DataConfig, split: str, where: str) -> None:
    """Raises DataError where labels that are numbers do not fit the number of classes."""
    lowest, highest = source.lowest, source.highest
    if lowest is None or highest is None:
        return
    named = bool(source.classes or config.class_names)
    classes = highest + 1
    if lowest >= 1 and (highest == config.num_classes or (split == "train" and not named)):
        raise DataError(
            f"{where}: labels are {lowest} ... {highest}: do they begin at 1? Classes are counted from 0: write the "
            f"labels anew, or set data.num_classes={classes} and name all classes in data.class_names, the first for "
            "class 0, which has no images"
        )
    if source.classes:  # a number that is none of them is a broken image
        return
    fewer = classes < config.num_classes and split == "train" and not named  # held-out images need not show every class
    if classes > config.num_classes or fewer:
        raise DataError(
            f"{where} has the labels {lowest} ... {highest}, but data.num_classes={config.num_classes}: set "
            f"data.num_classes={classes}" + (", or name all classes in data.class_names" if fewer else "")
        )
