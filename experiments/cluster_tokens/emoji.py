"""Fetch Google's emoji (Noto) with their categories: 64-pixel PNG files, 3,700 of them.

    python -m experiments.cluster_tokens.emoji [data/emoji]

From the npm package emoji-datasource-google (MIT; the pictures are Google's Noto Emoji, Apache License 2.0), checked
against its published SHA-512. Pictures stand on white. One emoji in ten, with all its skin tones, is held out, in
`test`.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import tarfile
from pathlib import Path

from scripts.emoji import VENDORS, fetch, on_white

GOOGLE = VENDORS["google"]
LEFT_OUT = "Component"  # five pictures of hair and skin


def pictures(emoji: dict) -> list[str]:
    """The file names of an emoji: its own, and one for each skin tone."""
    some = [emoji, *emoji.get("skin_variations", {}).values()]
    return [one["image"] for one in some if one.get("has_img_google")]


def write(package: bytes, folder: Path) -> dict[str, int]:
    """Write the pictures into folder/{train,test}/CATEGORY; returns how many of each split."""
    counts = {"train": 0, "test": 0}
    with tarfile.open(fileobj=io.BytesIO(package)) as archive:

        def read(name: str) -> bytes:
            file = archive.extractfile(f"package/{name}")
            assert file is not None
            return file.read()

        for emoji in json.loads(read("emoji.json")):
            if emoji["category"] == LEFT_OUT:
                continue
            split = "test" if hashlib.sha256(emoji["unified"].encode()).digest()[0] < 26 else "train"
            place = folder / split / emoji["category"].replace(" & ", "_and_").lower()
            place.mkdir(parents=True, exist_ok=True)
            for name in pictures(emoji):
                on_white(read(f"{GOOGLE.pictures}/{name}")).save(place / name)
                counts[split] += 1
    return counts


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, default=Path("data/emoji"))
    folder = parser.parse_args().folder
    print(f"{folder}: {write(fetch(GOOGLE), folder)}")


if __name__ == "__main__":
    main()
