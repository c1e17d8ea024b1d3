"""Fetch Google's emoji (Noto) with their categories: 64-pixel PNG files, 3,700 of them.

    python -m experiments.cluster_tokens.emoji [data/emoji]

From the npm package emoji-datasource-google (MIT; the pictures are Google's Noto Emoji, Apache License 2.0), checked
against its published SHA-512. Pictures stand on white. One emoji in ten, with all its skin tones, is held out, in
`test`.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import io
import json
import sys
import tarfile
import urllib.request
from pathlib import Path

from PIL import Image

URL = "https://registry.npmjs.org/emoji-datasource-google/-/emoji-datasource-google-16.0.0.tgz"
SHA512 = "ZRexfzs7MVoLnmzZmNsO4TKhnAJp5D++Vm6PpUpH/jEQQlemp3l88CjZ+DoZ2faM9R4QxZkOPJCoT8DlPhfQ3A=="
LEFT_OUT = "Component"  # five pictures of hair and skin


def fetch(url: str = URL, checksum: str = SHA512) -> bytes:
    """The package. Ends the program where it cannot be had or is another one."""
    try:
        with urllib.request.urlopen(url, timeout=120) as response:
            content: bytes = response.read()
    except OSError as error:
        sys.exit(f"error: {url}: {error}")
    found = base64.b64encode(hashlib.sha512(content).digest()).decode()
    if found != checksum:
        sys.exit(f"error: {url}: its SHA-512 is {found}, not {checksum}: not the published package")
    return content


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
                picture = Image.open(io.BytesIO(read(f"img/google/64/{name}"))).convert("RGBA")
                white = Image.new("RGBA", picture.size, "white")
                Image.alpha_composite(white, picture).convert("RGB").save(place / name)
                counts[split] += 1
    return counts


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, default=Path("data/emoji"))
    folder = parser.parse_args().folder
    print(f"{folder}: {write(fetch(), folder)}")


if __name__ == "__main__":
    main()
