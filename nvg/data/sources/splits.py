"""Files that belong to one split: a folder of a dataset hub holds all splits, told apart by words in the names."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Sequence

from nvg import storage
from nvg.errors import DataError

WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
SHARD = re.compile(r"(?P<before>.*[^0-9])(?P<number>[0-9]{3,6})-of-(?P<of>[0-9]{3,6})(?P<behind>[^/]*)$")
MOST_SHARDS = 100_000
_WORD = re.compile(rf"(?<![^-._ 0-9])(?:{'|'.join(word for words in WORDS.values() for word in words)})(?![^-._ 0-9])")


def split_of(name: str) -> str | None:
    """The split that a file or folder name speaks of, as dataset hubs read names: train-00000-of-00002.parquet."""
    match = _WORD.search(name.lower())
    return next((split for split, words in WORDS.items() if match and match[0] in words), None)


def files_of_one_split(path: str, suffixes: Sequence[str]) -> dict[str, int]:
    """The files of `storage.expand_sizes`. Raises DataError where they belong to several splits, unless the path itself
    names these (`{train,validation}-*.parquet`), and where one is missing of a set that is numbered NNNNN-of-NNNNN,
    unless the path does not ask for it (one file, `train-0000[0-3]-of-*`)."""
    sizes = storage.expand_sizes(path, suffixes)
    _refuse_missing_shards(path, sizes)
    patterns = _patterns(sizes)
    asked = re.search(r"[^/]*[*?\[{].*", path)  # the pattern in the path, without the folders before it
    if len(patterns) > 1 and not patterns.keys() <= set(map(split_of, re.split("[/{},]", asked[0] if asked else ""))):
        raise DataError(
            f"{path} holds the files of {len(patterns)} splits ({', '.join(patterns)}), which must not be mixed: give "
            f"the path of one, {' or '.join(patterns.values())}"
        )
    return sizes


def _refuse_missing_shards(path: str, files: Iterable[str]) -> None:
    """Raises DataError naming the files of a numbered set that a folder or pattern asks for and that are not there."""
    names = set(files)
    sets: dict[tuple[str, str, str], int] = {}  # what stands before and behind the number -> the digits of a number
    for name in names:
        if match := SHARD.search(name):
            sets[match["before"], match["of"], match["behind"]] = len(match["number"])
    missing = []
    for (before, of, behind), digits in sorted(sets.items()):
        numbers = range(int(of)) if int(of) <= MOST_SHARDS else ()
        shards = [f"{before}{number:0{digits}}-of-{of}{behind}" for number in numbers]
        # Some sets are numbered from 1.
        first = f"{before}{int(of):0{digits}}-of-{of}{behind}" in names
        shards = [*shards[1:], f"{before}{int(of):0{digits}}-of-{of}{behind}"] if first else shards
        missing += [shard for shard in shards if shard not in names and _asks_for(path, shard)]
    if missing:
        shown = ", ".join(shard.rpartition("/")[2] for shard in missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise DataError(
            f"{path} lacks {len(missing)} of its numbered files ({shown}): fetch them, or name the files to use by "
            "a pattern such as train-0000[0-3]-of-*"
        )


def _asks_for(path: str, file: str) -> bool:
    """Whether a path names a file: the file itself, a folder above it, or a pattern with stars and braces."""
    whole = storage.absolute(path)
    return any(fnmatch.fnmatchcase(file, item) or file.startswith(f"{item}/") for item in storage.braces(whole))


def _patterns(files: Iterable[str]) -> dict[str, str]:
    """The splits of the files, each with a folder or a pattern that names its files."""
    names = list(files)
    root = storage.common_folder(names)
    result: dict[str, str] = {}
    for file in names:
        *folders, name = file.removeprefix(root).split("/")
        above = root
        for folder in folders:
            if (split := split_of(folder)) is not None:
                result.setdefault(split, above + folder)
                break
            above += folder + "/"
        else:
            if (split := split_of(name)) is not None:
                result.setdefault(split, above + _pattern(name))
    return result


def _pattern(name: str) -> str:
    """train-00000-of-00002.parquet -> train-*.parquet, train.parquet -> train.parquet."""
    match = _WORD.search(name.lower())
    stem, dot, suffix = name.partition(".")
    if match is None or match.end() >= len(stem):
        return name
    return f"{stem[: match.end() + 1]}*{dot}{suffix}"
