"""Fields of the configuration that say more than their type: a number's range, that a text is a path.

The range stands where the setting is declared and nowhere else. The check of a configuration, the settings of a
sampler's call, the fields of an HTTP request and docs/reference/configuration all read it there.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from nvg.errors import ConfigError

REQUIRED: Any = "???"  # OmegaConf's mark of a value that must be given
OPERATIONAL = {"operational": True}  # metadata of a field on which no result depends


@dataclass(frozen=True)
class Range:
    """The finite numbers between two bounds, each of which is in the range (`least`, `most`) or not (`above`,
    `below`). Without a bound any finite number goes."""

    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None

    def __contains__(self, value: float) -> bool:
        return (
            math.isfinite(value)
            and (self.least is None or value >= self.least)
            and (self.above is None or value > self.above)
            and (self.most is None or value <= self.most)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        """The range in words: `at least 1`, `above 0, at most 1`."""
        bounds = {"at least": self.least, "above": self.above, "at most": self.most, "below": self.below}
        words = [f"{word} {bound}" for word, bound in bounds.items() if bound is not None]
        return ", ".join(words) or "any finite number"

    def require(self, key: str, value: float) -> None:
        """Raises ConfigError, naming the key, the value and the range, for a number that is not in it."""
        if value not in self:
            words = [] if math.isfinite(value) else ["a finite number"]
            words += [] if self == Range() else [str(self)]
            raise ConfigError(f"{key}={value} must be {', '.join(words)}")


SEEDS = Range(least=0, most=2**31 - 1)  # of images (nvg/generator/seeds.py says why) and of trainings


def number(
    default: Any = REQUIRED,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    word: str | None = None,
    operational: bool = False,
) -> Any:
    """A number with its range; of a list or a dictionary, the range of each of its numbers.

    word: of a number that may be None, how a configuration writes None; null goes as well, as files from before the
    word have it (nvg/config/loading.py reads it, and docs/reference/configuration shows it).
    A class that changes the default alone (`batch_size: int = 256`) keeps the range of the class that it derives from.
    """
    metadata = {"range": Range(least, above, most, below), "word": word} | (OPERATIONAL if operational else {})
    if isinstance(default, list | dict):
        return dataclasses.field(default_factory=default.copy, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def path(default: str | None = REQUIRED, *, operational: bool = False) -> Any:
    """A path or URL: `~` in it becomes the home folder when it is read (nvg/config/paths.py)."""
    return dataclasses.field(default=default, metadata={"path": True} | (OPERATIONAL if operational else {}))


def operational(section: Any) -> list[str]:
    """The names of a section's operational fields; of an instance or its class."""
    return [item.name for item in dataclasses.fields(section) if item.metadata.get("operational")]


def range_of(section: Any, name: str) -> Range:
    """The range of a number's field, of a section or its class. Raises KeyError where it has none."""
    kind = section if isinstance(section, type) else type(section)
    for declared in kind.__mro__:  # a default that is changed alone hides the metadata of the field before it
        item = getattr(declared, "__dataclass_fields__", {}).get(name)
        if item is not None and "range" in item.metadata:
            return item.metadata["range"]
    raise KeyError(f"{kind.__name__}.{name} has no range")


def words_for_none(section: Any) -> dict[str, str]:
    """The fields of a section in which a word stands for None, and the word."""
    words = {item.name: item.metadata.get("word") for item in dataclasses.fields(section)}
    return {name: word for name, word in words.items() if word is not None}


def has_range(section: Any, name: str) -> bool:
    """Whether a field is a number's."""
    try:
        range_of(section, name)
    except KeyError:
        return False
    return True


def check_ranges(section: Any, prefix: str = "") -> None:
    """Raises ConfigError for the first number of a section, or of the sections in it, that is not in its range.

    prefix: of the keys in messages."""
    for item in dataclasses.fields(section):
        value, key = getattr(section, item.name), f"{prefix}{item.name}"
        if dataclasses.is_dataclass(value):
            check_ranges(value, f"{key}.")
            continue
        if has_range(section, item.name):
            for where, one in _numbers(key, value):
                range_of(section, item.name).require(where, one)


def _numbers(key: str, value: Any) -> Iterator[tuple[str, float]]:
    """The numbers of a field, each with the key that names it; none where it is None."""
    if isinstance(value, list):
        yield from ((f"{key}[{index}]", one) for index, one in enumerate(value))
    elif isinstance(value, dict):
        yield from ((f"{key}.{name}", one) for name, one in value.items())
    elif value is not None:
        yield key, value
