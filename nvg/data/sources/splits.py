"""Files that belong to one split: a folder of a dataset hub holds all splits, told apart by words in the names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from nvg import storage
from nvg.errors import DataError

WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_WORD = re.compile(rf"(?<![^-._ 0-9])(?:{'|'.join(word for words in WORDS.values() for word in words)})(?![^-._ 0-9])")


def split_of(name: str) -> str | None:
    """The split that a file or folder name speaks of, as dataset hubs read names: train-00000-of-00002.parquet."""
    match = _WORD.search(name.lower())
    return next((split for split, words in WORDS.items() if match and match[0] in words), None)


def files_of_one_split(path: str, suffixes: Sequence[str]) -> dict[str, int]:
    """The files of `storage.expand_sizes`. Raises DataError where they belong to several splits, unless the path itself
    names these (`{train,validation}-*.parquet`)."""
    sizes = storage.expand_sizes(path, suffixes)
    patterns = _patterns(sizes)
    asked = re.search(r"[^/]*[*?\[{].*", path)  # the pattern in the path, without the folders before it
    if len(patterns) > 1 and not patterns.keys() <= set(map(split_of, re.split("[/{},]", asked[0] if asked else ""))):
        raise DataError(
            f"{path} holds the files of {len(patterns)} splits ({', '.join(patterns)}), which must not be mixed: give "
            f"the path of one, {' or '.join(patterns.values())}"
        )
    return sizes


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
