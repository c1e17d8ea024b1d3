"""YAML as configurations are written: mappings, lists, and plain values that stay the text that they are.

A field's type says what a value is, not its look: `name: no`, `[01, 02]` and `1:30` are texts, `lr: 1e-3` is a number
because `lr` is one. A key that is written twice is refused, and so is what makes a file read otherwise than it looks:
aliases, merge keys, tags.
"""

from __future__ import annotations

from typing import IO, Any

STANDARD = "tag:yaml.org,2002:"
NULL = STANDARD + "null"
# The tags that PyYAML gives by a value's look.
LOOKS = ("null", "bool", "int", "float", "timestamp", "str", "seq", "map", "merge", "value")
PLAIN = {STANDARD + name for name in LOOKS}


class TextError(ValueError):
    """A text that is no YAML of this kind; the message says in which line and what to do."""


def parse(text: str | IO[str]) -> Any:
    """Nested dictionaries and lists of texts and None. Raises TextError."""
    import yaml

    class Loader(yaml.SafeLoader):
        """Composes nodes without aliases: ten lines of them stand for a billion values."""

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise TextError(f"line {self.peek_event().start_mark.line + 1}: an alias (*name): write the values out")
            return super().compose_node(parent, index)

    try:
        node = Loader(text).get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1} is not YAML" if mark else "not YAML"
        raise TextError(f"{where}: {_problem(error.problem or error.context or '')}") from None
    except yaml.YAMLError as error:  # characters that no YAML may hold
        raise TextError(f"not YAML: {' '.join(str(error).split())}") from None
    return None if node is None else _value(node, "")


def _problem(problem: str) -> str:
    """PyYAML's words for an error, with what to do where it says too little."""
    if "'\\t'" in problem:
        return "a tab, where YAML takes spaces alone: indent with spaces"
    if "mapping values are not allowed" in problem:
        return "a second `key:` in one line, or wrong indentation: put a value that holds `: ` in quotes"
    return problem


def _value(node: Any, key: str) -> Any:
    """The value of a node. key: where it stands."""
    import yaml

    line = node.start_mark.line + 1
    if node.tag not in PLAIN:
        raise TextError(f"line {line}: the tag {node.tag} at {key or 'the top'}: write the value without it")
    if isinstance(node, yaml.ScalarNode):
        return None if node.tag == NULL and node.style is None else node.value
    if isinstance(node, yaml.SequenceNode):
        return [_value(item, f"{key}[{index}]") for index, item in enumerate(node.value)]
    lines: dict[str, int] = {}
    content = {}
    for name_node, value_node in node.value:
        at = name_node.start_mark.line + 1
        if not isinstance(name_node, yaml.ScalarNode):
            raise TextError(f"line {at}: a key that is no word")
        name = name_node.value
        whole = f"{key}.{name}" if key else name
        if name == "<<" and name_node.style is None:
            raise TextError(f"line {at}: a merge key (<<): write the values out, or name a file by `base:`")
        if name in lines:
            raise TextError(f"{whole} is given twice, in {_lines(lines[name], at)}: keep one of them")
        lines[name] = at
        content[name] = _value(value_node, whole)
    return content


def _lines(first: int, second: int) -> str:
    return f"line {first}" if first == second else f"lines {first} and {second}"
