"""Image sources: one file a layout, one interface (nvg/data/records.py)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from nvg.config import DataConfig
from nvg.data.records import DataError, ImageSource
from nvg.data.sources.folder import FolderSource
from nvg.data.sources.idx import IdxSource
from nvg.data.sources.ilsvrc import IlsvrcSource
from nvg.data.sources.parquet import ParquetSource
from nvg.data.sources.webdataset import WebDatasetSource

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
    data.num_classes.
    """
    path = config.train if split == "train" else config.test
    if path is None:
        raise DataError(f"data.{split} is not set: give the path or URL of the {split} images")
    source = SOURCES[config.source](config, path)
    if not source.units:
        raise DataError(f"data.{split}={path} holds no images that data.source={config.source} can read")
    if len(source.class_names) != config.num_classes:
        names = ", ".join(source.class_names[:10]) + (", ..." if len(source.class_names) > 10 else "")
        raise DataError(
            f"data.{split}={path} has {len(source.class_names)} classes ({names}), but "
            f"data.num_classes={config.num_classes}: set data.num_classes={len(source.class_names)}"
        )
    if config.class_names is not None:
        source.class_names = list(config.class_names)
    if split == "train" and config.limit is not None:
        source.units = source.units[: max(1, -(-config.limit // config.unit_images))]
    return source


def with_split(config: DataConfig, split: str) -> DataConfig:
    """A data section whose training images are those of a split: test images are streamed as training images are."""
    if split == "train":
        return config
    return dataclasses.replace(config, train=config.test or config.train, limit=None)
