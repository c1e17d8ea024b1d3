"""Sets of numbered files, NNNNN-of-NNNNN: what is asked for must be there."""

from __future__ import annotations

from pathlib import Path

import pytest

from nvg.data.sources.splits import files_of_one_split
from nvg.errors import DataError


def shards(folder: Path, numbers: list[int], of: int, split: str = "train") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        (folder / f"{split}-{number:05d}-of-{of:05d}.parquet").write_bytes(b"")
    return folder


def names(path: str) -> list[str]:
    return [file.rpartition("/")[2] for file in files_of_one_split(path, (".parquet",))]


@pytest.mark.parametrize("asked", ["", "/", "/train-*.parquet", "/*", "/{train,test}-*-of-00004.parquet"])
def test_a_missing_shard_of_a_folder_or_pattern_is_named(tmp_path: Path, asked: str) -> None:
    folder = shards(tmp_path / "set", [0, 1, 3], 4)
    with pytest.raises(DataError, match=r"lacks 1 of its numbered files \(train-00002-of-00004.parquet\): fetch them"):
        names(f"{folder}{asked}")


@pytest.mark.parametrize(
    ("asked", "count"),
    [
        ("/train-00000-of-00004.parquet", 1),
        ("/train-0000[01]-of-*.parquet", 2),
        ("/train-{00000..00001}-of-00004.parquet", 2),
        ("/train-*[013]-of-00004.parquet", 3),
    ],
)
def test_whoever_names_the_files_may_leave_some_out(tmp_path: Path, asked: str, count: int) -> None:
    assert len(names(f"{shards(tmp_path / 'set', [0, 1, 3], 4)}{asked}")) == count


@pytest.mark.parametrize("numbers", [[0, 1, 2, 3], [1, 2, 3, 4]])
def test_a_whole_set_is_numbered_from_0_or_from_1(tmp_path: Path, numbers: list[int]) -> None:
    assert len(names(str(shards(tmp_path / "set", numbers, 4)))) == 4


def test_many_missing_ones_are_counted_and_the_first_are_named(tmp_path: Path) -> None:
    folder = shards(tmp_path / "set", [9], 20)
    with pytest.raises(DataError, match=r"lacks 19 of .*train-00004-of-00020.parquet, \.\.\.\)"):
        names(str(folder))


def test_folders_are_sets_of_their_own(tmp_path: Path) -> None:
    shards(tmp_path / "set" / "a", [0, 1], 2)
    shards(tmp_path / "set" / "b", [1], 2)
    with pytest.raises(DataError, match="lacks 1 of its numbered files"):
        names(str(tmp_path / "set"))
