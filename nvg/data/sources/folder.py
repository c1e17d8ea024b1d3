"""An image folder: one sub-folder a class, images at any depth below it. Classes are the sorted folder names."""

from __future__ import annotations

from collections.abc import Iterator

from nvg import storage
from nvg.config import DataConfig
from nvg.data.classes import TrainingClasses, check_known, class_name, in_order
from nvg.data.records import BrokenImage, ImageRecord, ImageSource, Unit, chunks, read_image, shuffled
from nvg.data.sources.splits import split_of
from nvg.errors import DataError

IMAGE_SUFFIXES = (
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".png",
    ".apng",
    ".webp",
    ".avif",
    ".bmp",
    ".gif",
    ".tif",
    ".tiff",
    ".ppm",
    ".pgm",
    ".pbm",
    ".pnm",
)
# Pictures that no decoder here reads, unless their name is wrong: rows of the quarantine rather than files passed over.
OTHER_SUFFIXES = (".heic", ".heif", ".jxl", ".jp2", ".tga", ".psd", ".svg", ".ico")


class FolderSource(ImageSource):
    """root/<class>/.../<image>; an image's id is its path below the root."""

    def __init__(self, config: DataConfig, root: str, training: TrainingClasses | None = None) -> None:
        self.root = root.rstrip("/")
        self.files = storage.list_sizes(self.root, (*IMAGE_SUFFIXES, *OTHER_SUFFIXES))
        self.prefix = storage.absolute(self.root) + "/"
        names = [file.removeprefix(self.prefix) for file in self.files]
        loose = [name for name in names if "/" not in name]
        if loose:
            raise DataError(
                f"{self.root}/{loose[0]} lies in no class folder: data.source=folder takes <root>/<class>/<image>"
            )
        _refuse_splits(self.root, names)
        present = {class_name(name.split("/")[0]) for name in names}
        self.classes = in_order(present) if training is None else training()
        check_known(present, self.classes, self.root)
        self.class_names = list(self.classes)
        index = {name: label for label, name in enumerate(self.classes)}
        labelled = [(name, index[class_name(name.split("/")[0])]) for name in names]
        self.units: list[Unit] = [{"files": chunk} for chunk in chunks(shuffled(labelled), config.unit_images)]

    def _read(self, unit: Unit) -> Iterator[ImageRecord | BrokenImage]:
        for name, label in unit["files"]:
            yield read_image(name, self.prefix + name, label)

    def _size(self, unit: Unit) -> int:
        return len(unit["files"])

    def fingerprint(self) -> str:
        return storage.fingerprint(self.files, self.prefix)  # the names of the classes count, be it only one


def _refuse_splits(root: str, names: list[str]) -> None:
    """Raises DataError where the folders are splits, with the folders of the classes in them."""
    folders = sorted({name.split("/")[0] for name in names})
    deeper = len(folders) > 1 or any(name.count("/") > 1 for name in names)
    if folders and deeper and all(split_of(folder) for folder in folders):
        paths = " or ".join(f"{root}/{folder}" for folder in folders)
        raise DataError(f"{root} holds the folders of splits, not of classes: give the path of one, {paths}")
