"""WebDataset: tar shards whose members share a key, `key.jpg` with `key.cls` (a number) or `key.json` ({"label": 3}).

`data.train` is a tar file, a folder of them, or a pattern with braces or stars (`s3://bucket/train-{0000..0099}.tar`).
A shard is a unit. Shards hold no class names: give data.class_names, else they are the numbers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from nvg import storage
from nvg.config import DataConfig
from nvg.data.records import BrokenImage, ImageRecord, ImageSource, Unit
from nvg.data.sources.folder import IMAGE_SUFFIXES
from nvg.data.sources.tar import count_members, read_members


class WebDatasetSource(ImageSource):
    """An image's id is its shard's name and its key."""

    def __init__(self, config: DataConfig, path: str) -> None:
        self.files = storage.expand_sizes(path, (".tar", ".tar.gz", ".tgz"))
        self.prefix = storage.common_folder(self.files)
        self.class_names = []
        self.classes = config.num_classes
        self.units: list[Unit] = [{"shard": file} for file in self.files]

    def _read(self, unit: Unit) -> Iterator[ImageRecord | BrokenImage]:
        shard = unit["shard"]
        last = ""  # the key that is being read
        members: dict[str, bytes] = {}  # of this key, by suffix
        for name, data in read_members(shard):
            if isinstance(data, BrokenImage):
                sample = list(self._sample(shard, last, members))  # whole, or cut off
                yield from (record for record in sample if isinstance(record, ImageRecord))
                yield data
                return
            folder, _, file = name.rpartition("/")
            stem, _, suffix = file.partition(".")  # a key ends at the first dot of the file name
            key = f"{folder}/{stem}" if folder else stem
            if key != last:  # members of one key stand together
                yield from self._sample(shard, last, members)
                last, members = key, {}
            members["." + suffix.lower()] = data
        yield from self._sample(shard, last, members)

    def _sample(self, shard: str, key: str, members: dict[str, bytes]) -> Iterator[ImageRecord | BrokenImage]:
        if not members:
            return
        image_id, path = f"{shard.removeprefix(self.prefix)}/{key}", f"{shard}#{key}"
        images = [data for suffix, data in members.items() if suffix.endswith(IMAGE_SUFFIXES)]
        if not images:
            yield BrokenImage(image_id, path, f"no image member among {sorted(members)}")
            return
        try:
            label = _label(members)
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            yield BrokenImage(image_id, path, f"no class: {error}")
            return
        if not 0 <= label < self.classes:
            yield BrokenImage(image_id, path, f"class {label} is none of 0 ... {self.classes - 1}")
            return
        yield ImageRecord(image_id, images[0], label, path)

    def _size(self, unit: Unit) -> int:
        return count_members(unit["shard"], IMAGE_SUFFIXES)


def _label(members: dict[str, bytes]) -> int:
    """The class number of a sample. Raises ValueError where there is none."""
    if ".cls" in members:
        return int(members[".cls"].decode().strip())
    if ".json" in members:
        content = json.loads(members[".json"])
        for key in ("label", "cls", "class"):
            if isinstance(content, dict) and key in content:
                return int(content[key])
    raise ValueError("neither a .cls member nor a .json member with `label`")
