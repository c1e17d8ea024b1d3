"""scripts/emoji.py: small packages from a server on this machine; what is chosen, held out and refused."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nvg.config import DataConfig
from nvg.data import open_source
from scripts import emoji
from scripts.emoji import CATALOGUE, LEAST, SIDE, TONES, VENDORS, kin
from tests.support.site import served

PEOPLE = [f"{person}-200D-{0x1F400 + number:X}" for number in range(11) for person in ("1F468", "1F469", "1F9D1")]


def entry(unified: str, category: str, subgroup: str, *, tones: bool = False) -> dict[str, Any]:
    """An emoji of the catalogue."""
    made: dict[str, Any] = {"unified": unified, "category": category, "subcategory": subgroup}
    made["image"] = f"{unified.lower()}.png"
    if tones:
        made["skin_variations"] = {tone: {"image": f"{unified.lower()}-{tone.lower()}.png"} for tone in TONES}
        made["skin_variations"]["1F3FB-1F3FC"] = {"image": f"{unified.lower()}-1f3fb-1f3fc.png"}
    return made


CATALOG = [
    *(entry(one, "People & Body", "person-role", tones=True) for one in PEOPLE),
    *(entry(f"{0x1F600 + number:X}", "Travel & Places", "sky & weather") for number in range(LEAST)),
    *(entry(f"{0x1F700 + number:X}", "Objects", "too small") for number in range(LEAST - 1)),
    *(entry(f"{0x1F800 + number:X}", "Flags", "country-flag") for number in range(2 * LEAST)),
]


def picture(name: str, side: int, kind: str) -> bytes:
    """A square in a colour of its own, on nothing."""
    pixels = np.zeros((side, side, 4), np.uint8)
    pixels[side // 4 : -side // 4, side // 4 : -side // 4] = [*hashlib.sha256(name.encode()).digest()[:3], 255]
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **({"lossless": True} if kind == "WEBP" else {}))
    return buffer.getvalue()


def package(name: str, catalogue: list[dict[str, Any]] | None) -> bytes:
    """A package of a vendor, which has all pictures of the catalogue but one."""
    names = [one for item in CATALOG for one in [item["image"], *(v["image"] for v in toned(item))]]
    side, kind = (128, "WEBP") if name == "fluent" else (SIDE, "PNG")
    content = {f"{VENDORS[name].pictures}/{one[:-4]}.{kind.lower()}": picture(name + one, side, kind) for one in names}
    if name == "twitter":
        del content[f"{VENDORS[name].pictures}/1f600.png"]
    if catalogue is not None:
        content[CATALOGUE[1]] = json.dumps(catalogue).encode()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for path, data in content.items():
            member = tarfile.TarInfo(f"package/{path}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def toned(item: dict[str, Any]) -> list[dict[str, Any]]:
    return list(item.get("skin_variations", {}).values())


@pytest.fixture(scope="module")
def packages() -> dict[str, bytes]:
    return {name: package(name, CATALOG) for name in VENDORS}


@pytest.fixture
def publish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[dict[str, bytes]], None]]:
    """publish(packages): these are what the registry has, with the checksums that the script knows."""
    site = tmp_path / "site"
    site.mkdir()

    def run(some: dict[str, bytes]) -> None:
        for name, data in some.items():
            path = site / VENDORS[name].url
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            checksum = base64.b64encode(hashlib.sha512(data).digest()).decode()
            monkeypatch.setitem(emoji.VENDORS, name, dataclasses.replace(VENDORS[name], sha512=checksum))

    with served(site) as address:
        monkeypatch.setenv("NPM_REGISTRY", address + "/")
        yield run


@pytest.fixture
def made(
    publish: Callable[[dict[str, bytes]], None], packages: dict[str, bytes], tmp_path: Path
) -> Callable[..., dict[str, set[tuple[str, str, str]]]]:
    """made(*arguments): (class, vendor, code points) of the pictures of each split."""

    def run(*arguments: str) -> dict[str, set[tuple[str, str, str]]]:
        publish(packages)
        folder = tmp_path / "emoji"
        emoji.main([str(folder), *arguments])
        found: dict[str, set[tuple[str, str, str]]] = {}
        for path in folder.glob("*/*/*.png"):
            vendor, _, points = path.stem.partition("-")
            found.setdefault(path.parts[-3], set()).add((path.parts[-2], vendor, points.upper()))
        return found

    return run


def test_classes_are_subgroups_of_enough_emoji_and_no_flags(made: Callable[..., Any], tmp_path: Path) -> None:
    found = made()
    for split in ("train", "test"):
        assert {label for label, _, _ in found[split]} == {"person-role", "sky-and-weather"}
        assert {vendor for _, vendor, _ in found[split]} == set(VENDORS)
    count = len(found["train"]) + len(found["test"])
    assert count == 3 * (len(PEOPLE) + LEAST) - 1  # one vendor lacks one
    data = DataConfig(source="folder", train=str(tmp_path / "emoji" / "train"), num_classes=2)
    assert open_source(data, "train").class_names == ["person-role", "sky-and-weather"]


@pytest.mark.parametrize("tones", [False, True])
def test_no_emoji_of_test_is_in_train_over_vendors_tones_and_genders(made: Callable[..., Any], tones: bool) -> None:
    found = made(*(["--tones"] if tones else []))
    kins = {split: {kin(points) for _, _, points in some} for split, some in found.items()}
    assert not kins["train"] & kins["test"]
    for label, groups in (("person-role", 11), ("sky-and-weather", LEAST)):
        tested = {kin(points) for name, _, points in found["test"] if name == label}
        assert len(tested) == round(groups / 10)
    people = [points for label, _, points in found["train"] | found["test"] if label == "person-role"]
    assert len(people) == 3 * len(PEOPLE) * (1 + tones * len(TONES))
    assert not any("1F3FB-1F3FC" in points for points in people)  # of two tones


def test_a_vendor_is_held_out_whole(made: Callable[..., Any]) -> None:
    found = made("--test-vendor", "twitter")
    assert {vendor for _, vendor, _ in found["test"]} == {"twitter"}
    assert {vendor for _, vendor, _ in found["train"]} == {"google", "fluent"}
    assert len(found["test"]) == len(PEOPLE) + LEAST - 1


def test_pictures_stand_on_white_in_one_size_with_their_licences(made: Callable[..., Any], tmp_path: Path) -> None:
    made()
    folder = tmp_path / "emoji"
    for vendor in VENDORS:
        (path,) = folder.glob(f"*/sky-and-weather/{vendor}-1f601.png")
        with Image.open(path) as shown:
            assert shown.size == (SIDE, SIDE) and shown.mode == "RGB"
            assert shown.getpixel((0, 0)) == (255, 255, 255)
            assert shown.getpixel((SIDE // 2, SIDE // 2)) == tuple(
                hashlib.sha256(f"{vendor}1f601.png".encode()).digest()[:3]
            )
    text = (folder / "LICENCES.md").read_text()
    assert all(one.licence in text and one.package in text and one.source in text for one in VENDORS.values())


@pytest.mark.parametrize(
    ("points", "name"),
    [
        ("1F469-200D-1F373", "1F9D1-1F373"),  # a woman who cooks
        ("1F3C3-1F3FD-200D-2640-FE0F-200D-27A1-FE0F", "1F3C3"),  # she runs to the right
        ("1F9D1-1F3FB-200D-1F91D-200D-1F9D1-1F3FF", "1F9D1-1F91D-1F9D1"),
        ("2764-FE0F", "2764"),
    ],
)
def test_kin_are_emoji_that_differ_by_gender_tone_or_direction(points: str, name: str) -> None:
    assert kin(points) == name


# ---- what is refused ----


def refused(arguments: list[str]) -> str:
    with pytest.raises(SystemExit) as stopped:
        emoji.main(arguments)
    message = str(stopped.value)
    assert message.startswith("error: ") and "\n" not in message
    return message


@pytest.mark.parametrize("vendor", VENDORS)
@pytest.mark.parametrize("fault", ["altered", "missing"])
def test_a_package_that_is_not_the_published_one_leaves_nothing(
    fault: str, vendor: str, publish: Callable[..., None], packages: dict[str, bytes], tmp_path: Path
) -> None:
    publish(packages)
    path = tmp_path / "site" / VENDORS[vendor].url
    path.write_bytes(packages[vendor][:-1]) if fault == "altered" else path.unlink()
    message = refused([str(tmp_path / "emoji")])
    assert VENDORS[vendor].url in message
    assert ("not the published package" if fault == "altered" else "404") in message
    assert [one.name for one in tmp_path.iterdir()] == ["site"]


def test_a_registry_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NPM_REGISTRY", "http://127.0.0.1:9")
    message = refused([str(tmp_path / "emoji")])
    assert "http://127.0.0.1:9/emoji-datasource-google/-/" in message and "NPM_REGISTRY=" in message


def test_packages_without_pictures_or_catalogue_are_refused(
    publish: Callable[..., None], packages: dict[str, bytes], tmp_path: Path
) -> None:
    publish(packages | {"google": package("google", None)})
    assert "emoji-datasource-google-16.0.0.tgz has no emoji.json" in refused([str(tmp_path / "emoji")])
    publish(packages | {"fluent": packages["google"]})
    assert "@lobehub/fluent-emoji-3d-1.1.0.tgz has no pictures in assets" in refused([str(tmp_path / "emoji")])
    assert [one.name for one in tmp_path.iterdir()] == ["site"]


def test_a_folder_that_exists_is_left_alone(tmp_path: Path) -> None:
    assert "exists: remove it, or name another folder" in refused([str(tmp_path)])
