"""The 1,000 classes of ILSVRC 2012: their synsets and names, from the list that ships with the package."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

SYNSET = re.compile(r"n\d{8}")
SHIPPED = Path(__file__).with_name("imagenet_synsets.txt")


def shipped_synsets() -> dict[str, str]:
    """synset -> name, in the usual order."""
    return dict(sorted(parse_synsets(SHIPPED.read_text()).items()))


def shipped_class_names() -> list[str]:
    """The names of the 1,000 classes, in the usual order."""
    names = shipped_synsets()
    return distinct_names(list(names), names)


def parse_synsets(text: str) -> dict[str, str]:
    """synset -> name, of a text with a synset and its name per line."""
    return {line[:9]: line[10:].strip() or line[:9] for line in text.splitlines() if SYNSET.match(line)}


def distinct_names(synsets: Sequence[str], names: Mapping[str, str]) -> list[str]:
    """The name of each synset, with its id where another one has the same: ImageNet has two classes "crane"."""
    repeated = {name for name, count in Counter(names.get(item, item) for item in synsets).items() if count > 1}
    return [f"{names[item]} ({item})" if names.get(item) in repeated else names.get(item, item) for item in synsets]
