"""Seeds of images: whole numbers from 0 to 2^31 - 1, in Python, over HTTP and on the command line.

torch's generator on a CPU reads 32 bits of a seed: larger numbers would draw the images of smaller ones again. Seeds
that follow one another go on from the largest at 0.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

from nvg.config import SEEDS


def nth_seed(seed: int, number: int) -> int:
    """The seed of image `number` = 0, 1, ... where the first one has `seed`."""
    return (seed + number) % (int(SEEDS.most or 0) + 1)


def image_seeds(seed: Any, count: int) -> list[int]:
    """One seed for each of `count` images, of a number (the first one's) or of one number per image. numpy's and
    torch's whole numbers are fine. Raises ValueError for others, for numbers out of range, and for too few or many."""
    if isinstance(seed, Iterable) and not isinstance(seed, str) and getattr(seed, "ndim", 1) > 0:
        seeds = [_checked(one) for one in seed]
        if len(seeds) != count:
            raise ValueError(f"{len(seeds)} seeds for {count} images")
        return seeds
    first = _checked(seed)
    return [nth_seed(first, number) for number in range(count)]


def whole_number(value: Any) -> int | None:
    """A whole number as an int, None for anything else: 1.0, True and "1" are none."""
    if isinstance(value, bool) or "bool" in str(getattr(value, "dtype", "")):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def _checked(seed: Any) -> int:
    number = whole_number(seed)
    if number is None or number not in SEEDS:
        raise ValueError(f"seed={seed!r} must be a whole number from {SEEDS.least} to {SEEDS.most}")
    return number
