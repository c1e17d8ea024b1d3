"""WebDataset: tar shards whose members share a key, `key.jpg` with `key.cls` (a number) or `key.json` ({"label": 3}).

`data.train` is a tar file, a folder of them, or a pattern with braces or stars (`s3://bucket/train-{0000..0099}.tar`).
A shard is a unit. Shards hold no class names: give data.class_names, else they are the numbers, counted from 0.

A key ends at the first dot of the file name, and its members stand together. A shard is read as a stream, so what is
written otherwise cannot be mended: every image that has no place in a sample is a row of the quarantine.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator

from nvg import storage
from nvg.config import DataConfig
from nvg.data.classes import TrainingClasses, whole_number
from nvg.data.records import BrokenImage, ImageRecord, ImageSource, Unit
from nvg.data.sources.folder import IMAGE_SUFFIXES, OTHER_SUFFIXES
from nvg.data.sources.splits import files_of_one_split
from nvg.data.sources.tar import read_members
from nvg.errors import DataError

Member = tuple[str, bytes | BrokenImage]  # its suffix in lower case (`.jpg`, `.seg.png`), and its bytes
FIRST_DOT = "a key ends at the first dot of the file name"
SORT = "the members of a key must stand together: write the shard anew with tar --sort=name"


class WebDatasetSource(ImageSource):
    """An image's id is its shard's name and its key."""

    def __init__(self, config: DataConfig, path: str, training: TrainingClasses | None = None) -> None:
        self.files = files_of_one_split(path, (".tar", ".tar.gz", ".tgz"))
        self.prefix = storage.common_folder(self.files)
        self.classes = self.class_names = []
        self.count_of_classes = config.num_classes
        self.units: list[Unit] = [{"shard": file} for file in self.files]

    def _read(self, unit: Unit) -> Iterator[ImageRecord | BrokenImage]:
        shard = unit["shard"]
        return _Shard(shard, shard.removeprefix(self.prefix), self.count_of_classes).read()

    def _size(self, unit: Unit) -> int:
        return sum(1 for _ in self._read(unit))


class _Shard:
    """One reading of a shard, with what must be remembered of it."""

    def __init__(self, path: str, name: str, classes: int) -> None:
        self.path, self.name, self.classes = path, name, classes
        self.with_image: set[str] = set()  # keys
        self.without_image: dict[str, list[str]] = {}  # key -> the suffixes of its members
        self.without_label: list[BrokenImage] = []  # their reason depends on what follows
        self.labels: set[int] = set()
        self.names: Counter[str] = Counter()

    def read(self) -> Iterator[ImageRecord | BrokenImage]:
        """All images in order; those whose label is missing last."""
        last = ""  # the key that is being read
        members: list[Member] = []  # of this key
        end: list[BrokenImage] = []
        for name, data in read_members(self.path):
            if isinstance(data, BrokenImage) and not name:
                end = [data]
                break
            folder, _, file = name.rpartition("/")
            stem, _, suffix = file.partition(".")
            key = f"{folder}/{stem}" if folder else stem
            if key != last:
                yield from self._sample(last, members)
                last, members = key, []
            members.append(("." + suffix.lower(), data))
        sample = list(self._sample(last, members))
        if not end:
            yield from sample
            self._check_labels()
            yield from self._leftovers()
            return
        # The last key may be cut off: its image is read if it is whole, else the row of the archive stands for it.
        yield from (record for record in sample if isinstance(record, ImageRecord))
        self.without_label = [row for row in self.without_label if row.image_id != f"{self.name}/{last}"]
        self.without_image.pop(last, None)
        yield from self._leftovers()
        yield from end

    def _sample(self, key: str, members: list[Member]) -> Iterator[ImageRecord | BrokenImage]:
        """The image of a key, and a row for every other picture among its members."""
        if not members:
            return
        pictures = [member for member in members if member[0].endswith((*IMAGE_SUFFIXES, *OTHER_SUFFIXES))]
        if not pictures:
            self.without_image.setdefault(key, []).extend(suffix for suffix, _ in members)
            return
        chosen = _the_image(pictures)
        again = key in self.with_image
        self.with_image.add(key)
        suffixes = ", ".join(sorted(suffix for suffix, _ in members))
        for picture in pictures:
            if again:
                yield self._broken(key, f"the key {key!r} stands in the shard before: {SORT}, each key once")
            elif isinstance(picture[1], BrokenImage):
                yield self._broken(key if picture is chosen else key + picture[0], picture[1].reason)
            elif picture is not chosen:
                yield self._broken(
                    key + picture[0],
                    f"{FIRST_DOT}: {key!r} has {len(pictures)} images ({suffixes}), of which at most "
                    "one can have its label",
                )
            else:
                yield from self._labelled(key, picture[1], members)

    def _labelled(self, key: str, data: bytes, members: list[Member]) -> Iterator[ImageRecord | BrokenImage]:
        """The record of a key's image, or its row."""
        try:
            label = _label(members)
        except (ValueError, TypeError, RecursionError) as error:
            yield self._broken(key, f"no class: {error}")
            return
        if label is None:
            self.without_label.append(self._broken(key, _no_label(key, members)))
            return
        self.labels.add(label)
        if not 0 <= label < self.classes:
            yield self._broken(key, f"class {label} is none of 0 ... {self.classes - 1}")
            return
        yield ImageRecord(self._id(key), data, label, f"{self.path}#{key}")

    def _leftovers(self) -> Iterator[BrokenImage]:
        """Rows of the images without labels, and of the labels without images, of which no key has both."""
        for row in self.without_label:
            key = row.path.removeprefix(f"{self.path}#")
            elsewhere = self.without_image.pop(key, [])
            if elsewhere:
                reason = f"no class: {', '.join(sorted(elsewhere))} of {key!r} stands elsewhere in the shard; {SORT}"
                row = BrokenImage(row.image_id, row.path, reason)
            yield row
        for key, suffixes in self.without_image.items():
            if key not in self.with_image:
                yield self._broken(key, f"no image member among {sorted(suffixes)}")

    def _check_labels(self) -> None:
        """Raises DataError where the shard's labels seem to be counted from 1."""
        low, high = min(self.labels, default=0), max(self.labels, default=0)
        if low >= 1 and high == self.classes:
            raise DataError(
                f"{self.path}: labels are {low} ... {high}: do they begin at 1? With data.num_classes={self.classes} "
                f"they are 0 ... {self.classes - 1}: write the shards anew, or set data.num_classes={high + 1} and "
                "name all classes in data.class_names, the first for class 0, which has no images"
            )

    def _id(self, name: str) -> str:
        self.names[name] += 1
        return f"{self.name}/{name}" + (f"#{self.names[name]}" if self.names[name] > 1 else "")

    def _broken(self, name: str, reason: str) -> BrokenImage:
        return BrokenImage(self._id(name), f"{self.path}#{name}", reason)


def _the_image(pictures: list[Member]) -> Member | None:
    """The picture that has the key's label: the only one, or the only one without a second dot (`.jpg` beside
    `.seg.png`). None where that does not decide."""
    plain = [picture for picture in pictures if picture[0].count(".") == 1]
    for some in (pictures, plain):
        if len(some) == 1:
            return some[0]
    return None


def _label(members: list[Member]) -> int | None:
    """The class number of a sample, None where there is none. Raises ValueError where it is no number, or not one."""
    for kind in (".cls", ".json"):
        contents = {
            data.reason if isinstance(data, BrokenImage) else data for suffix, data in members if suffix == kind
        }
        if len(contents) > 1:
            raise ValueError(f"{len(contents)} {kind} members that differ")
        for data in contents:
            if isinstance(data, str):
                raise ValueError(f"its {kind} member {data}")
            if kind == ".cls":
                return whole_number(data.decode())
            content = json.loads(data)
            for key in ("label", "cls", "class"):
                if isinstance(content, dict) and key in content:
                    return whole_number(content[key])
    return None


def _no_label(key: str, members: list[Member]) -> str:
    """Why a key has no label."""
    reason = "no class: neither a .cls member nor a .json member with `label`"
    dotted = [suffix for suffix, _ in members if suffix.endswith((".cls", ".json")) and suffix.count(".") > 1]
    return f"{reason}; {FIRST_DOT}, and {key!r} has {', '.join(dotted)}" if dotted else reason
