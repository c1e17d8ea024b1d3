"""The classes of an image set: their names, their order, and the numbers that stand for them."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

from nvg.errors import DataError

# Gives the classes of the training images to a source of other images, which are numbered by them.
TrainingClasses = Callable[[], list[str]]


def class_name(text: str) -> str:
    """The one spelling of a name: composed Unicode (NFC), since file systems and programs compose differently; bytes
    that are no Unicode are spelled out."""
    return unicodedata.normalize("NFC", text.encode(errors="backslashreplace").decode())


def in_order(names: Iterable[str]) -> list[str]:
    """The names sorted: as numbers where all of them are numbers (2 before 10), else as text."""
    unique = sorted(set(names))
    return sorted(unique, key=int) if all(name.isdecimal() for name in unique) else unique


def told_apart(names: Sequence[str]) -> list[str]:
    """The names, repeated ones with their numbers: crane, crane -> crane (0), crane (1)."""
    result = list(names)
    while len(set(result)) < len(result):
        count = Counter(result)
        result = [f"{name} ({number})" if count[name] > 1 else name for number, name in enumerate(result)]
    return result


def check_known(names: Iterable[str], classes: Sequence[str], where: str) -> None:
    """Raises DataError where one of the names is none of the training images' classes."""
    unknown = [name for name in in_order(names) if name not in classes]
    if not unknown:
        return
    alike = [name for name in classes if name.casefold().strip() == unknown[0].casefold().strip()]
    hint = f"; data.train has {alike[0]!r}" if alike else ""
    raise DataError(
        f"{where} has images of class {unknown[0]!r}, which data.train has not{hint}: rename the class or remove its "
        f"images ({len(unknown)} such classes)"
    )


def misplaced(names: Sequence[str], other: Sequence[str]) -> str | None:
    """The first of some names that stands at another place in the other list, whatever its case. Lists of other words
    altogether are taken for translations of each other."""
    places = {name.casefold(): label for label, name in enumerate(other)}
    return next((name for label, name in enumerate(names) if places.get(name.casefold(), label) != label), None)


def first(names: Sequence[str]) -> str:
    """The first ten names, for a message."""
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")


def whole_number(value: Any) -> int:
    """A label as an integer: of 3, 3.0, True or "3". Raises ValueError for anything that is no whole number."""
    try:
        if not isinstance(value, int | float | Decimal | str):
            raise ValueError
        number = Decimal(value.strip() if isinstance(value, str) else value)
        if not number.is_finite() or not -(2**63) <= number < 2**63 or number != number.to_integral_value():
            raise ValueError
    except (ValueError, InvalidOperation):
        raise ValueError(f"{value!r:.80} is no whole number") from None
    return int(number)
