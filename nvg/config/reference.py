"""docs/configuration.md, made of the schema: every setting with its default, its range and the comment behind it.

python -m nvg.config.reference > docs/configuration.md
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from nvg.config import schema
from nvg.config.fields import REQUIRED, has_range, range_of
from nvg.config.schema import Config, ServeConfig

WORDS = {"None": "null", "True": "true", "False": "false"}  # Python's in YAML
YAML_WORDS = re.compile("|".join(rf"\b{word}\b" for word in WORDS))
HEAD = """\
# Configuration

Every setting, its default, its range, and what it does. This page is what `python -m nvg.config.reference` prints,
made of `nvg/config/schema.py`; a test compares the two.

An experiment is a YAML file over these defaults, and `key=value` on the command line goes over the file. Where a key
is given twice on the command line, the last one counts, so that you can append a setting to a command. In a file a key
that is given twice is refused, with both lines.

- A value is what its setting takes it for: `name: no` is a name, `lr: 1e-3` a number. `null` stands for nothing.
- A number that is not finite or not in its range is refused before anything starts.
- In a path, `~` at the start is your home folder. `$NAME` is refused: write `${oc.env:NAME}`. A relative path starts at
  the working directory.
- `base: other.yaml` in a file takes that file's keys, and the file's own go over them.
- *Derived* settings follow from others: leave them out.
- A setting marked *operational* changes no result, so it may change between a stop and going on.
"""


def page() -> str:
    """The text of docs/configuration.md."""
    parts = [HEAD, *_table("The experiment", Config, "")]
    for section in dataclasses.fields(Config):
        if dataclasses.is_dataclass(section.default_factory):
            parts += _table(f"`{section.name}`", section.default_factory, f"{section.name}.")
    parts += _table("Serving", ServeConfig, "")
    return "\n".join(parts)


def _table(title: str, section: Any, prefix: str) -> Iterator[str]:
    """The heading of a section and the table of its settings."""
    notes, hidden = comments(section), " *Operational.*" if prefix and _whole(prefix[:-1]) else ""
    yield f"\n## {title}\n\n{section.__doc__}{hidden}\n"
    yield "| key | default | range | |\n| --- | --- | --- | --- |"
    for item in dataclasses.fields(section):
        if dataclasses.is_dataclass(item.default_factory):
            continue
        allowed = str(range_of(section, item.name)) if has_range(section, item.name) else _kind(item)
        note = notes.get(item.name, "")
        if prefix + item.name in schema.DERIVED:
            note = "*Derived.*"
        elif item.metadata.get("operational"):
            note = f"{note} *Operational.*".strip()
        cells = [f"`{prefix}{item.name}`", _default(item), allowed, note]
        yield f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |"


def _whole(name: str) -> bool:
    """Whether a whole section is operational."""
    return name in schema.operational(Config)


def _default(item: dataclasses.Field) -> str:
    """The default of a field in YAML's words."""
    value = item.default
    if item.default_factory is not dataclasses.MISSING:
        value = item.default_factory()
    if value == REQUIRED:
        return "must be given"
    return f"`{WORDS.get(str(value), value)}`"


def _kind(item: dataclasses.Field) -> str:
    """What goes where no number does."""
    if item.metadata.get("path"):
        return "path or URL"
    kinds = {"bool": "true, false", "str": "text", "list[str]": "list of texts"}
    return kinds[str(item.type).removesuffix(" | None")]


def comments(section: Any) -> dict[str, str]:
    """The comment of each field of a section, that of the class that it derives from where it has none."""
    result: dict[str, str] = {}
    for kind in reversed(section.__mro__):
        if dataclasses.is_dataclass(kind):
            result |= _comments(kind)
    return result


def _comments(kind: Any) -> dict[str, str]:
    """The comments that stand over and behind the fields of one class."""
    lines = inspect.getsource(kind).split("\n")
    result = {}
    for node in ast.parse("\n".join(lines)).body[0].body:  # type: ignore[attr-defined]
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        words = [lines[node.end_lineno - 1][node.end_col_offset :]]  # type: ignore[index,operator]
        line = node.lineno - 2
        while lines[line].lstrip().startswith("#"):
            words.insert(0, lines[line])
            line -= 1
        text = " ".join(word.strip().removeprefix("#").strip() for word in words).strip()
        if text:
            result[node.target.id] = YAML_WORDS.sub(lambda match: WORDS[match[0]], text)
    return result


def main(argv: Sequence[str] | None = None) -> None:
    """Print the page. argv: the command line without the program."""
    argparse.ArgumentParser(description="Print docs/configuration.md, made of the schema.").parse_args(argv)
    sys.stdout.write(page())


if __name__ == "__main__":
    main()
