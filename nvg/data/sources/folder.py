"""An image folder: one sub-folder a class, images at any depth below it. Classes are the sorted folder names."""

from __future__ import annotations

from collections.abc import Iterator

from nvg import storage
from nvg.config import DataConfig
from nvg.data.records import BrokenImage, ImageRecord, ImageSource, Unit, chunks, read_image, shuffled
from nvg.errors import DataError

IMAGE_SUFFIXES = (
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".png",
    ".webp",
    ".avif",
    ".bmp",
    ".gif",
    ".tif",
    ".tiff",
    ".ppm",
    ".pgm",
)


class FolderSource(ImageSource):
    """root/<class>/.../<image>; an image's id is its path below the root."""

    def __init__(self, config: DataConfig, root: str) -> None:
        self.root = root.rstrip("/")
        self.files = storage.list_sizes(self.root, IMAGE_SUFFIXES)
        self.prefix = storage.absolute(self.root) + "/"
        names = [file.removeprefix(self.prefix) for file in self.files]
        loose = [name for name in names if "/" not in name]
        if loose:
            raise DataError(
                f"{self.root}/{loose[0]} lies in no class folder: data.source=folder takes <root>/<class>/<image>"
            )
        self.class_names = sorted({name.split("/")[0] for name in names})
        index = {name: label for label, name in enumerate(self.class_names)}
        labelled = [(name, index[name.split("/")[0]]) for name in names]
        self.units: list[Unit] = [{"files": chunk} for chunk in chunks(shuffled(labelled), config.unit_images)]

    def _read(self, unit: Unit) -> Iterator[ImageRecord | BrokenImage]:
        for name, label in unit["files"]:
            yield read_image(name, self.prefix + name, label)

    def _size(self, unit: Unit) -> int:
        return len(unit["files"])

    def fingerprint(self) -> str:
        return storage.fingerprint(self.files, self.prefix)  # the names of the classes count, be it only one
