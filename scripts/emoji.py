"""Have emoji to train on: 64-pixel pictures of three vendors, a folder for each Unicode subgroup.

    python scripts/emoji.py data/emoji64

writes FOLDER/{train,test}/CLASS/VENDOR-CODEPOINTS.png and FOLDER/LICENCES.md. The packages come from npm's registry
(150 MB), and are checked against their published SHA-512. docs/reference/emoji.md lists the classes, and says what is
held out.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import io
import json
import os
import shutil
import sys
import tarfile
import urllib.request
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

REGISTRY = "https://registry.npmjs.org"
SIDE = 64  # pixels; two of the vendors have no larger ones
LEAST = 20  # emoji of a class, which has about three pictures of each
LEFT_OUT = ("Flags", "Component")  # Microsoft's package has Google's flags; a component is hair or skin by itself
TONES = ("1F3FB", "1F3FC", "1F3FD", "1F3FE", "1F3FF")
# Adults, children and the old are each drawn in two genders and in none. The rest: gender signs, joiner, direction.
SAME = {"1F468": "1F9D1", "1F469": "1F9D1", "1F466": "1F9D2", "1F467": "1F9D2", "1F474": "1F9D3", "1F475": "1F9D3"}
UNSEEN = {"2640", "2642", "200D", "FE0F", "27A1", *TONES}


@dataclass(frozen=True)
class Vendor:
    """A package with one vendor's pictures."""

    package: str  # on npm
    version: str
    sha512: str
    pictures: str  # the folder of the pictures in the package
    holder: str
    licence: str
    source: str

    @property
    def url(self) -> str:
        """The package's address below a registry's."""
        return f"{self.package}/-/{self.package.rpartition('/')[2]}-{self.version}.tgz"


VENDORS = {
    "google": Vendor(
        "emoji-datasource-google",
        "16.0.0",
        "ZRexfzs7MVoLnmzZmNsO4TKhnAJp5D++Vm6PpUpH/jEQQlemp3l88CjZ+DoZ2faM9R4QxZkOPJCoT8DlPhfQ3A==",
        "img/google/64",
        "Noto Emoji, Google",
        "Apache License 2.0",
        "https://github.com/googlefonts/noto-emoji",
    ),
    "twitter": Vendor(
        "emoji-datasource-twitter",
        "16.0.0",
        "7F+uCuHH+7Qnrc15P5tnbvKkg9E6tlzi4MnT2uW1RlN4pLYTza6cP/dstIfSDMtpjFLWuZewWg8jBbuL2eyELQ==",
        "img/twitter/64",
        "Twemoji, Twitter and other contributors",
        "CC-BY 4.0",
        "https://github.com/jdecked/twemoji",
    ),
    "fluent": Vendor(
        "@lobehub/fluent-emoji-3d",
        "1.1.0",
        "Wlq2lVStTnr8BDpIJ0pEnTKO4LuDxxqTEhTvRtD1DLRF0me7ogeRQjKoehDHXuVJ2Qaecgl5wRBv60lUAG3h7g==",
        "assets",
        "Fluent Emoji, Microsoft; packed by LobeHub",
        "MIT",
        "https://github.com/microsoft/fluentui-emoji",
    ),
}
CATALOGUE = ("google", "emoji.json")  # the vendor whose package lists all emoji, and the file


def main(argv: list[str] | None = None) -> None:
    """Fetch, choose and write. argv: the command line without the program."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, default=Path("data/emoji64"))
    parser.add_argument("--test-vendor", choices=VENDORS, help="hold this vendor out, in place of one emoji in ten")
    parser.add_argument("--tones", action="store_true", help="write the five skin tones too")
    arguments = parser.parse_args(argv)
    folder: Path = arguments.folder
    if folder.exists():
        sys.exit(f"error: {folder} exists: remove it, or name another folder")
    packages = {name: files(vendor, fetch(vendor)) for name, vendor in VENDORS.items()}
    partial = folder.parent / f".{folder.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    counts = write(packages, partial, test_vendor=arguments.test_vendor, tones=arguments.tones)
    (partial / "LICENCES.md").write_text(licences())
    partial.replace(folder)
    print(f"{folder}: " + ", ".join(f"{counts[split]} pictures to {split}" for split in ("train", "test")))


# ---- the packages ----


def fetch(vendor: Vendor) -> bytes:
    """A package. Ends the program where it cannot be had or is another one."""
    url = f"{os.environ.get('NPM_REGISTRY', REGISTRY).rstrip('/')}/{vendor.url}"
    print(f"emoji: {url}", file=sys.stderr, flush=True)
    try:
        with urllib.request.urlopen(url, timeout=120) as response:
            content: bytes = response.read()
    except OSError as error:
        sys.exit(f"error: {url}: {error}: another registry can be named, NPM_REGISTRY=https://...")
    found = base64.b64encode(hashlib.sha512(content).digest()).decode()
    if found != vendor.sha512:
        sys.exit(f"error: {url}: its SHA-512 is {found}, not {vendor.sha512}: not the published package")
    return content


def files(vendor: Vendor, package: bytes) -> dict[str, bytes]:
    """The catalogue and the pictures of a package: by name, a picture's without its ending."""
    found = {}
    with tarfile.open(fileobj=io.BytesIO(package)) as archive:
        for member in archive:
            path = Path(member.name.partition("/")[2])
            if str(path.parent) == vendor.pictures or str(path) == CATALOGUE[1]:
                file = archive.extractfile(member)
                if file is not None:
                    found[path.name if str(path) == CATALOGUE[1] else path.stem] = file.read()
    if not any(name != CATALOGUE[1] for name in found):
        sys.exit(f"error: {vendor.package}-{vendor.version}.tgz has no pictures in {vendor.pictures}")
    return found


# ---- which emoji, and where ----


def classes(catalogue: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The emoji of every class, by its name: a Unicode subgroup of at least LEAST emoji."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for emoji in catalogue:
        if emoji["category"] not in LEFT_OUT:
            groups.setdefault(emoji["subcategory"].replace(" & ", "-and-"), []).append(emoji)
    return {name: groups[name] for name in sorted(groups) if len(groups[name]) >= LEAST}


def kin(unified: str) -> str:
    """The code points of an emoji without gender, tone and direction: what looks alike has one name."""
    return "-".join(SAME.get(point, point) for point in unified.split("-") if point not in UNSEEN)


def held_out(members: dict[str, list[dict[str, Any]]]) -> set[str]:
    """The kin that are held out: of every class one in ten, at least one, those whose hashes are the least."""
    found: set[str] = set()
    for some in members.values():
        kins = sorted(
            {kin(emoji["unified"]) for emoji in some}, key=lambda name: hashlib.sha256(name.encode()).digest()
        )
        found.update(kins[: max(1, round(len(kins) / 10))])
    return found


def names(emoji: dict[str, Any], tones: bool) -> list[str]:
    """The names of an emoji's pictures: its own, and with tones those of one tone alone."""
    some = [emoji]
    if tones:
        variations = emoji.get("skin_variations", {})
        some += [variations[tone] for tone in TONES if tone in variations]
    return [one["image"].removesuffix(".png") for one in some]


def write(packages: dict[str, dict[str, bytes]], folder: Path, *, test_vendor: str | None, tones: bool) -> Counter[str]:
    """Write the pictures of all vendors into folder/{train,test}/CLASS; returns the number in each split. Ends the
    program where the catalogue is missing."""
    vendor, name = CATALOGUE
    if name not in packages[vendor]:
        sys.exit(f"error: {VENDORS[vendor].package}-{VENDORS[vendor].version}.tgz has no {name}")
    members = classes(json.loads(packages[vendor][name]))
    tested, counts = held_out(members), Counter[str]()
    for label, some in members.items():
        for emoji in some:
            for vendor, pictures in packages.items():
                test = kin(emoji["unified"]) in tested if test_vendor is None else vendor == test_vendor
                place = folder / ("test" if test else "train") / label
                place.mkdir(parents=True, exist_ok=True)
                for picture in names(emoji, tones):
                    if picture in pictures:  # no vendor has drawn all
                        on_white(pictures[picture]).save(place / f"{vendor}-{picture}.png")
                        counts[place.parent.name] += 1
    return counts


def on_white(data: bytes) -> Image.Image:
    """A picture with alpha on white, SIDE pixels wide and high."""
    picture = Image.open(io.BytesIO(data)).convert("RGBA")
    flat = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    return flat if flat.size == (SIDE, SIDE) else flat.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def licences() -> str:
    """What is written beside the pictures."""
    rows = [
        f"| `{name}-*.png` | {one.holder} | {one.licence} | {one.source} | {one.package} {one.version} |"
        for name, one in VENDORS.items()
    ]
    head = ["# Licences", "", "The pictures were put on white and scaled to 64 pixels. They are:", ""]
    table = ["| files | whose | licence | source | npm package |", "| --- | --- | --- | --- | --- |"]
    return "\n".join([*head, *table, *rows, ""])


if __name__ == "__main__":
    main()
