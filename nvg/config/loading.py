"""From YAML and `key=value` to a configuration, and back. OmegaConf, yaml and fsspec are imported on first use."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import hashlib
import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from nvg.config.checks import validate, validate_serving
from nvg.config.fields import range_of, words_for_none
from nvg.config.paths import expand_paths, with_home
from nvg.config.schema import DERIVED, Config, ServeConfig, trainings
from nvg.config.text import TextError, parse
from nvg.errors import ConfigError
from nvg.extras import require_store

Schema = TypeVar("Schema")
LENGTHS = ("tokenizer_train", "train")  # sections that give a length as steps or as epochs


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file (path or URL) and apply `key=value` overrides, the last one winning.

    Raises ConfigError with the key's name for an unknown key, a wrong type, a missing value or values that do not
    fit together.
    """
    content, files = _with_bases(str(path))
    return from_dict(content, overrides, where=" over ".join(files))


def merged(base: dict, changes: dict) -> dict:
    """Nested dictionaries, the second one winning."""
    result = dict(base)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        result[key] = merged(base[key], value) if both else value
    return result


def over(base: dict, changes: dict) -> dict:
    """`merged`, but a training's length that the changes give, as steps or as epochs, stands for the base's length."""
    result = merged(base, changes)
    for name in LENGTHS:
        section = changes.get(name)
        given = {key for key in ("steps", "epochs") if isinstance(section, dict) and section.get(key) is not None}
        if len(given) == 1 and isinstance(result[name], dict):
            result[name] = {key: value for key, value in result[name].items() if key not in {"steps", "epochs"} - given}
    return result


def read(path: str | Path) -> dict:
    """The keys of a YAML file (path or URL) over those of the file that its key `base` names, and of that file's base.

    `base` is a URL or a path from the folder of the file that names it. Raises ConfigError, naming the file, where one
    is missing or no mapping, and where bases go in a circle.
    """
    return _with_bases(str(path))[0]


def read_file(path: str | Path) -> dict:
    """A YAML file (path or URL) as it is: texts, which the fields' types make numbers (nvg/config/text.py).

    Raises ConfigError where it is missing or no mapping, or gives a key twice, naming the key and both lines.
    """
    import fsspec

    require_store(str(path))
    try:
        with fsspec.open(with_home(str(path)), "r") as file:
            content = parse(file)
    except FileNotFoundError:
        raise ConfigError(f"no configuration file at {path}") from None
    except TextError as error:
        raise ConfigError(f"{path}: {error}") from None
    except (ValueError, RecursionError) as error:  # ValueError: no text
        raise ConfigError(f"{path} is not YAML: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds no keys: expected a mapping such as `name: my_experiment`")
    return content


def _with_bases(path: str) -> tuple[dict, list[str]]:
    """What `read` returns, and the files that were read, the first one first."""
    content: dict = {}
    files = [path]
    while True:
        try:
            found = read_file(files[-1])
        except ConfigError as error:
            raise ConfigError(f"{error} (base of {files[-2]})" if len(files) > 1 else str(error)) from None
        base = found.pop("base", None)
        content = over(found, content)
        if base is None:
            return content, files
        if not isinstance(base, str) or not base:
            raise ConfigError(f"{files[-1]}: base={base!r} must be the path or URL of a YAML file")
        base = _beside(files[-1], base)
        if base in files:
            raise ConfigError(f"{files[-1]}: base={base} goes in a circle: {' -> '.join([*files, base])}")
        files.append(base)


def _beside(file: str, name: str) -> str:
    """A URL or a path, from the folder of the file that names it."""
    name = with_home(name)
    if "://" in name or os.path.isabs(name):
        return name
    scheme, mark, way = file.rpartition("://")
    return f"{scheme}{mark}{os.path.normpath(os.path.join(os.path.dirname(way), name))}"


def from_dict(content: dict, overrides: Sequence[str] = (), *, where: str = "configuration") -> Config:
    """As `load`, from a nested dictionary."""
    config = _typed(Config, content, overrides, where, DERIVED)
    for section in trainings(config).values():
        if section.precision == "auto":
            section.precision = config.precision
    validate(config, where)
    return config


def serve_config(content: dict, overrides: Sequence[str] = (), *, where: str = "configuration") -> ServeConfig:
    """The configuration of a deployment. Raises ConfigError with the key's name."""
    config = _typed(ServeConfig, content, overrides, where, {})
    validate_serving(config, where)
    return config


def _typed(
    schema: type[Schema], content: dict, overrides: Sequence[str], where: str, derived: dict[str, Callable]
) -> Schema:
    """A dataclass from a dictionary and overrides, every key known, every type right, nothing missing."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    changes = [override(item) for item in overrides]
    for part in (content, *changes):
        _check_kinds(schema, part, where)
    content, *changes = (_with_none(schema, part) for part in (content, *changes))
    content = over(content, functools.reduce(merged, changes, {}))
    try:
        defaults = _defaults(schema)  # type: ignore[arg-type]  # a class is hashable; its stubs doubt it
        node = OmegaConf.merge(defaults, *map(OmegaConf.create, (content, *changes)))
        for key, value in derived.items():
            expected = value(node)
            if OmegaConf.is_missing(OmegaConf.select(node, key.split(".")[0]), key.split(".")[1]):
                OmegaConf.update(node, key, expected)
            elif OmegaConf.select(node, key) != expected:
                raise ConfigError(
                    f"{where}: {key}={OmegaConf.select(node, key)} does not fit the other sections, which give "
                    f"{expected}: leave {key} out"
                )
        config = OmegaConf.to_object(node)
    except (OmegaConfBaseException, TypeError) as error:  # TypeError: a list where a section belongs
        raise ConfigError(_explain(error, where, schema)) from None
    assert isinstance(config, schema)
    expand_paths(config, f"{where}: ")
    return config


@functools.cache  # most of the time of reading a configuration; a merge copies it
def _defaults(schema: type) -> Any:
    """A schema as OmegaConf has it, with its defaults; never changed."""
    from omegaconf import OmegaConf

    return OmegaConf.structured(schema)


def override(item: str) -> dict:
    """`key=value` as nested dictionaries: "a.b=1" -> {"a": {"b": "1"}}. Raises ConfigError for another form."""
    key, equals, text = item.partition("=")
    if not key.strip() or not equals:
        raise ConfigError(f"override {item!r} is not of the form key=value (for example train.lr=2e-4)")
    try:
        value = parse(text) if text.strip() else ""
    except TextError as error:
        raise ConfigError(f"override {item!r}: {error}") from None
    *sections, name = key.strip().split(".")
    content = {name: value}
    for section in reversed(sections):
        content = {section: content}
    return content


def _explain(error: Exception, where: str, schema: type) -> str:
    key = getattr(error, "full_key", None) or getattr(error, "key", None) or "?"
    first_line = str(error).split("\n")[0]
    if "not in" in first_line:
        near = _near_key(str(key), _all_keys(schema))
        hint = f"; did you mean {near!r}?" if near else ""
        return f"{where}: unknown key {key!r}{hint}"
    if "Missing mandatory value" in first_line or "Structured config" in first_line:
        return f"{where}: {key!r} must be given"
    if "None" in first_line or "not Optional" in first_line:
        return f"{where}: {key} is empty: give a value, or leave the key out"
    wrong = re.match(r"Value '(.*)' of type '\w+' could not be converted to (Integer|Float)", first_line)
    if wrong:
        return f"{where}: {key}={wrong[1]} is no {'whole ' if wrong[2] == 'Integer' else ''}number{_range(schema, key)}"
    if "Interpolation key" in first_line:
        return f"{where}: {key}: {first_line}; an environment variable is ${{oc.env:NAME}}"
    return f"{where}: {key}: {first_line}"


def _range(schema: Any, key: str) -> str:
    """`, at least 1`: the range of a number in an error, and the word that goes in its place."""
    *sections, name = key.partition("[")[0].split(".")
    for section in sections:
        schema = next((item.default_factory for item in dataclasses.fields(schema) if item.name == section), schema)
    word = words_for_none(schema).get(name)
    return f", {range_of(schema, name)}{f', or {word}' if word else ''}"


YES_OR_NO = ("true", "false", "yes", "no", "on", "off")


def _check_kinds(schema: type, content: dict, where: str, key: str = "") -> None:
    """Raises ConfigError for a section that is none, and for what OmegaConf would take for another value: `flip: 2` as
    true, a list in a list of names as its text."""
    for item in dataclasses.fields(schema):
        value, name = content.get(item.name), f"{key}{item.name}"
        if dataclasses.is_dataclass(item.default_factory):
            if item.name in content and not isinstance(value, dict):
                problem = f"is {value!r} and no section" if value else "is empty"
                raise ConfigError(f"{where}: {name} {problem}: write its keys below it, indented, or leave it out")
            _check_kinds(item.default_factory, value or {}, where, f"{name}.")
        elif item.type == "bool" and isinstance(value, str | int | float):
            if str(value).lower() not in YES_OR_NO and "${" not in str(value):
                raise ConfigError(f"{where}: {name}={value} is neither true nor false")
        elif isinstance(value, list) and any(isinstance(one, list | dict) for one in value):
            raise ConfigError(f"{where}: {name}={value}: a list of plain values, without lists in it")


def _with_none(schema: type, content: dict) -> dict:
    """The content with None where a field's word for it stands (`micro_batch: auto`)."""
    result, words = dict(content), words_for_none(schema)
    for item in dataclasses.fields(schema):
        value = content.get(item.name)
        if dataclasses.is_dataclass(item.default_factory) and value:
            result[item.name] = _with_none(item.default_factory, value)
        elif item.name in words and value == words[item.name]:
            result[item.name] = None
    return result


def _near_key(key: str, keys: list[str]) -> str | None:
    """A known key that was perhaps meant: a like name in the same section, else the same name in another one."""
    section, _, name = key.rpartition(".")
    known = [tuple(item.rpartition(".")[::2]) for item in keys]
    near = difflib.get_close_matches(name, [other for where, other in known if where == section], n=1)
    if near:
        return f"{section}.{near[0]}" if section else near[0]
    elsewhere = [f"{where}.{other}" for where, other in known if other == name and where]
    return elsewhere[0] if elsewhere else next(iter(difflib.get_close_matches(key, keys, n=1, cutoff=0.8)), None)


def _all_keys(schema: type) -> list[str]:
    keys = []
    for section in dataclasses.fields(schema):
        keys.append(section.name)
        if dataclasses.is_dataclass(section.default_factory):
            keys += [f"{section.name}.{item.name}" for item in dataclasses.fields(section.default_factory)]
    return keys


def to_dict(config: Any) -> dict:
    """A configuration or a section as plain nested dictionaries."""
    return dataclasses.asdict(config)


def to_yaml(config: Config) -> str:
    """The resolved configuration as YAML that `load` reads back."""
    import yaml

    return yaml.safe_dump(to_dict(config), sort_keys=False)


def digest(*parts: Any) -> str:
    """A short hash of configuration sections, strings and lists: 12 hexadecimal digits, stable over machines."""
    plain = [dataclasses.asdict(part) if dataclasses.is_dataclass(part) else part for part in parts]  # type: ignore[arg-type]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:12]
