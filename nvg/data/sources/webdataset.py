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
        self.path = path
        self.files = storage.expand(path, (".tar", ".tar.gz", ".tgz"))
        self.class_names = list(config.class_names or [str(label) for label in range(config.num_classes)])
        self.units: list[Unit] = [{"shard": file} for file in self.files]

    def read(self, unit: Unit) -> Iterator[ImageRecord | BrokenImage]:
        shard = unit["shard"]
        parts: dict[str, dict[str, bytes]] = {}
        for name, data in read_members(shard):
            if isinstance(data, BrokenImage):
                yield data
                break
            folder, _, file = name.rpartition("/")
            stem, _, suffix = file.partition(".")  # a key ends at the first dot of the file name
            key = f"{folder}/{stem}" if folder else stem
            if parts and key not in parts:  # members of one key stand together
                yield from self._sample(shard, parts)
                parts = {}
            parts.setdefault(key, {})["." + suffix.lower()] = data
        yield from self._sample(shard, parts)

    def _sample(self, shard: str, parts: dict[str, dict[str, bytes]]) -> Iterator[ImageRecord | BrokenImage]:
        for key, members in parts.items():
            image_id, place = f"{shard.rsplit('/', 1)[-1]}/{key}", f"{shard}#{key}"
            images = [data for suffix, data in members.items() if suffix.endswith(IMAGE_SUFFIXES)]
            if not images:
                yield BrokenImage(image_id, place, f"no image member among {sorted(members)}")
                continue
            try:
                label = _label(members)
            except (ValueError, KeyError, TypeError) as error:
                yield BrokenImage(image_id, place, f"no class: {error}")
                continue
            if not 0 <= label < len(self.class_names):
                yield BrokenImage(image_id, place, f"class {label} is none of 0 ... {len(self.class_names) - 1}")
                continue
            yield ImageRecord(image_id, images[0], label, place)

    def count(self) -> int:
        return sum(count_members(file, IMAGE_SUFFIXES) for file in (unit["shard"] for unit in self.units))

    def fingerprint(self) -> str:
        return storage.fingerprint(self.files)


def _label(members: dict[str, bytes]) -> int:
    if ".cls" in members:
        return int(members[".cls"].decode().strip())
    if ".json" in members:
        content = json.loads(members[".json"])
        for key in ("label", "cls", "class"):
            if key in content:
                return int(content[key])
    raise ValueError("neither a .cls member nor a .json member with `label`")
