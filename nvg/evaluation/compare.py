"""Evaluations side by side, and a refusal where their figures mean different things.

    python -m nvg.evaluation.compare runs/a/evaluation.json runs/b/evaluation.json ...

A Fréchet distance of 10,000 samples is larger than that of 50,000 of the same sampler, and one on other feature weights
or another reference has nothing to do with it: such files are refused, naming what differs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from nvg import storage
from nvg.errors import NotComparable

# What two evaluations must share. The sampler's settings may differ: they are what is compared.
SHARED = ("samples", "reference", "reference_images", "reference_fingerprint", "network", "image_size", "given")
MEASURED = ("dinov2_network",)  # what they must share where both have it


def check(evaluations: dict[str, dict[str, Any]]) -> None:
    """Whether evaluations have one protocol. evaluations: file -> content of an evaluation.json. Raises NotComparable
    naming the first difference."""
    (first_file, first), *others = evaluations.items()
    for file, other in others:
        for key in (*SHARED, *MEASURED):
            # Without `given` in files of an earlier version: nothing was.
            value, other_value = first["protocol"].get(key), other["protocol"].get(key)
            if value != other_value and (key in SHARED or None not in (value, other_value)):
                raise NotComparable(
                    f"{first_file} and {file} cannot be compared: {key} is {value!r} in the one and {other_value!r} in "
                    "the other. Evaluate both samplers with the same settings of `evaluate`"
                )


def table(evaluations: dict[str, dict[str, Any]]) -> str:
    """Figures as rows, evaluations as columns, each with its interval."""
    names: dict[str, None] = {}
    for evaluation in evaluations.values():
        names |= dict.fromkeys(name for name in evaluation["figures"] if name in evaluation["intervals"])
    lines = [f"{number + 1}: {file}  ({one['sampler']})" for number, (file, one) in enumerate(evaluations.items())]
    lines += ["", f"{'':<36}" + "".join(f"{number + 1:>34}" for number in range(len(evaluations)))]
    for name in names:
        cells = []
        for evaluation in evaluations.values():
            if name not in evaluation["figures"]:
                cells.append("-")
                continue
            low, high = evaluation["intervals"][name]
            cells.append(f"{evaluation['figures'][name]:.4g} [{low:.4g}, {high:.4g}]")
        lines.append(f"{name:<36}" + "".join(f"{cell:>34}" for cell in cells))
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("files", nargs="+", help="evaluation.json, paths or URLs")
    arguments = parser.parse_args(argv)
    try:
        evaluations = {file: storage.read_json(file) for file in arguments.files}
        for file, content in evaluations.items():
            if not isinstance(content, dict) or "protocol" not in content:
                raise ValueError(f"{file} is no evaluation.json of this project: it names no protocol")
        check(evaluations)
    except (FileNotFoundError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(table(evaluations))
    return 0


if __name__ == "__main__":
    sys.exit(main())
