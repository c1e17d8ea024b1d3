"""An image folder: one sub-folder a class, images at any depth below it. Classes are the sorted folder names."""

from __future__ import annotations

from collections.abc import Iterator

from nvg import storage
from nvg.config import DataConfig
from nvg.data.records import BrokenImage, DataError, ImageRecord, ImageSource, Unit, chunks, shuffled

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")


class FolderSource(ImageSource):
    """root/<class>/.../<image>; an image's id is its path below the root."""

    def __init__(self, config: DataConfig, root: str) -> None:
        self.root = root.rstrip("/")
        self.files = files = storage.list_files(self.root, IMAGE_SUFFIXES)
        self.prefix = common_root(self.root, files)
        names = [file.removeprefix(self.prefix) for file in files]
        loose = [name for name in names if "/" not in name]
        if loose:
            raise DataError(
                f"{self.root}/{loose[0]} lies in no class folder: data.source=folder takes <root>/<class>/<image>"
            )
        self.class_names = sorted({name.split("/")[0] for name in names})
        index = {name: label for label, name in enumerate(self.class_names)}
        labelled = [(name, index[name.split("/")[0]]) for name in names]
        self.units: list[Unit] = [{"files": chunk} for chunk in chunks(shuffled(labelled), config.unit_images)]

    def read(self, unit: Unit) -> Iterator[ImageRecord | BrokenImage]:
        for name, label in unit["files"]:
            path = self.prefix + name
            try:
                yield ImageRecord(name, storage.read_bytes(path), label, path)
            except OSError as error:
                yield BrokenImage(name, path, f"{type(error).__name__}: {error}")

    def count(self) -> int:
        return sum(len(unit["files"]) for unit in self.units)

    def fingerprint(self) -> str:
        return storage.fingerprint(self.files, self.prefix)


def common_root(root: str, files: list[str]) -> str:
    """The root as it stands in the listed files (a file system may write paths its own way), with its slash."""
    if not files:
        return root + "/"
    tail = root.split("://")[-1].strip("/")
    place = files[0].find(tail)
    if place < 0:
        raise DataError(f"{files[0]} is not below {root}")
    return files[0][: place + len(tail)] + "/"
