"""docs/reference/configuration, made of the schema: every setting with its default, its range and its comment.

`python -m scripts.docs` writes the pages.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from collections.abc import Iterator
from typing import Any

from nvg.config import schema
from nvg.config.fields import REQUIRED, has_range, range_of, words_for_none
from nvg.config.schema import Config, ServeConfig

WORDS = {"None": "null", "True": "true", "False": "false"}  # Python's in YAML
YAML_WORDS = re.compile("|".join(rf"\b{word}\b" for word in WORDS))
MADE = "<!-- Made by python -m scripts.docs of nvg/config/schema.py. -->"
HEAD = f"""\
# Configuration

{MADE}

Every setting, with its default, its range and its meaning.

An experiment is a YAML file over these defaults. Write what differs into it, and name the file that yours is based on:

```yaml
base: fashion_mnist.yaml  # a URL, or a path from the folder of this file
name: mine
output: runs/mine
train:
  steps: 4000
```

`key=value` on the command line goes over the file: `nvg run --config conf/fashion_mnist.yaml train.lr=2e-4`.

- A value is read as its setting takes it: `name: no` is a name, `lr: 1e-3` a number. `null` stands for nothing.
- `null` goes wherever a word stands for it, such as `auto` for `train.micro_batch`, as older files have it.
- An unknown key, a number that is not finite or a number outside of its range ends the command before anything starts.
- The last one of two equal keys on the command line counts, so you can append a setting to a command. In a file a key
  that is given twice is refused, with both lines.
- `~` at the start of a path is your home folder. `$NAME` is refused: write `${{oc.env:NAME}}`. A relative path starts
  at the working directory.
- Settings with the default *derived* follow from others: leave them out.
- An *operational* setting changes no result, so you may change it between a stop and the next start
  ([artifacts](../artifacts.md#operational-settings)).
"""
PAGES = {  # file name -> title, and the sections on it
    "data.md": ("Images", ("data",)),
    "tokenizer.md": ("Tokenizer", ("tokenizer", "tokenizer_train")),
    "generators.md": ("Generators", ("repa", "content", "structure", "train")),
    "distillation.md": ("Distillation", ("distill",)),
    "sampling.md": ("Sampling and evaluation", ("sampler", "evaluate")),
    "cluster.md": ("Cluster and tracking", ("cluster", "tracking")),
}
SERVING = "serving.md"


def pages() -> dict[str, str]:
    """The pages of docs/reference/configuration by file name."""
    sections = {item.name: item.default_factory for item in dataclasses.fields(Config)}
    listed = [
        f"| [{title}]({name}) | {', '.join(f'`{each}`' for each in names)} |" for name, (title, names) in PAGES.items()
    ]
    listed.append(f"| [Serving]({SERVING}) | a configuration of its own, for `nvg serve` |")
    index = [HEAD, "| page | sections |", "| --- | --- |", *listed, *_table("The experiment", Config, "")]
    result = {"index.md": "\n".join(index) + "\n"}
    for name, (title, names) in PAGES.items():
        tables = [part for each in names for part in _table(f"`{each}`", sections[each], f"{each}.")]
        result[name] = "\n".join((f"# Configuration: {title.lower()}", "", MADE, *tables)) + "\n"
    result[SERVING] = (
        "\n".join(("# Configuration: serving", "", MADE, *_table("The deployment", ServeConfig, ""))) + "\n"
    )
    return result


def _table(title: str, section: Any, prefix: str) -> Iterator[str]:
    """The heading of a section and the table of its settings."""
    words = words_for_none(section)
    notes, hidden = comments(section), " *Operational.*" if prefix and _whole(prefix[:-1]) else ""
    yield f"\n## {title}\n\n{_linked(inspect.cleandoc(section.__doc__))}{hidden}\n"
    yield "| key | default | range | |\n| --- | --- | --- | --- |"
    for item in dataclasses.fields(section):
        if dataclasses.is_dataclass(item.default_factory):
            continue
        allowed = str(range_of(section, item.name)) if has_range(section, item.name) else _kind(item)
        note = _linked(notes.get(item.name, ""))
        if item.metadata.get("operational"):
            note = f"{note} *Operational.*".strip()
        default = _default(item)
        if item.name in words:
            allowed, default = f"{allowed}, or {words[item.name]}", f"`{words[item.name]}`"
        if prefix + item.name in schema.DERIVED:
            default, note = "*derived*", note.removeprefix("derived").lstrip(": ")
        cells = [f"`{prefix}{item.name}`", default, allowed, note]
        yield f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |"


def _linked(text: str) -> str:
    """Pages that a comment names, as links from docs/reference/configuration."""
    return re.sub(r"docs/([\w/]+)\.md", lambda found: f"[{found[1].split('/')[-1]}](../../{found[1]}.md)", text)


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
