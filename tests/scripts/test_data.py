"""scripts/data.py: the download, from a server on this machine, with right, wrong and missing files."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tests.support.site import served

SCRIPT = Path(__file__).parents[2] / "scripts" / "data.py"


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """The folder that the server serves."""
    folder = tmp_path / "site"
    folder.mkdir()
    return folder


@pytest.fixture
def address(site: Path) -> Iterator[str]:
    with served(site) as url:
        yield url


@pytest.fixture
def script(tmp_path: Path, site: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script on a machine without the package and without apt, whose official files are those of the site."""
    spec = importlib.util.spec_from_file_location("fashion_mnist", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "PACKAGED", tmp_path / "packaged")
    monkeypatch.setattr(module, "DOWNLOADED", tmp_path / "downloaded")
    monkeypatch.setattr(module, "install_package", lambda: False)
    for name in module.FILES:
        (site / name).write_bytes(name.encode())
    checksums = {name: hashlib.md5(name.encode(), usedforsecurity=False).hexdigest() for name in module.FILES}
    monkeypatch.setattr(module, "FILES", checksums)
    return module


def fill(folder: Path, script: ModuleType) -> None:
    folder.mkdir()
    for name in script.FILES:
        (folder / name).touch()


def test_files_of_the_package_need_no_settings(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    fill(script.PACKAGED, script)
    script.main([])
    assert capsys.readouterr().out == ""


def test_a_download_ends_with_the_settings_that_find_it(
    script: ModuleType, address: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FASHION_MNIST_URL", address)
    script.main([])
    found = script.DOWNLOADED
    expected = f"data.train={found}/train-images-idx3-ubyte.gz data.test={found}/t10k-images-idx3-ubyte.gz\n"
    assert capsys.readouterr().out == expected
    assert {path.name for path in found.iterdir()} == set(script.FILES)

    monkeypatch.setenv("FASHION_MNIST_URL", "http://127.0.0.1:9")  # now it is there: nobody is asked
    script.main([])
    assert capsys.readouterr().out == expected


@pytest.mark.parametrize("fault", ["altered", "missing"])
def test_a_file_that_is_not_the_official_one_is_never_kept(
    fault: str,
    script: ModuleType,
    site: Path,
    address: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bad = site / "t10k-images-idx3-ubyte.gz"
    bad.write_bytes(b"something else") if fault == "altered" else bad.unlink()
    monkeypatch.setenv("FASHION_MNIST_URL", address)
    with pytest.raises(SystemExit) as stopped:
        script.main([])
    assert f"{address}/{bad.name}" in str(stopped.value)
    assert ("checksum" if fault == "altered" else "404") in str(stopped.value)
    assert capsys.readouterr().out == ""
    assert bad.name not in {path.name for path in script.DOWNLOADED.iterdir()}

    bad.write_bytes(bad.name.encode())  # the next try goes on with what is missing
    script.main([])
    assert script.complete(script.DOWNLOADED)


def test_the_second_address_is_tried_when_the_first_fails(script: ModuleType, address: str) -> None:
    script.download((f"{address}/nowhere", address), script.DOWNLOADED)
    assert script.complete(script.DOWNLOADED)
