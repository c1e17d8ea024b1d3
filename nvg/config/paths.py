"""Paths in settings and on command lines: one home folder, and nothing that only looks like a path.

A shell expands `~` and `$HOME` in some words and not in others (`--config ~/a.yaml`, but not `data.train=~/a`), and
never in a file. So `~` is expanded here, once, where a setting is read: the rest of the project sees whole paths.
"""

from __future__ import annotations

import dataclasses
import os
import re
from typing import Any

from nvg.errors import ConfigError

SCHEMES = ("file://", "sqlite:///")  # before a path of this machine
WINDOWS = re.compile(r"[A-Za-z]:[\\/]|\\\\")
VARIABLE = re.compile(r"\$\w|\$\{\w+\}|%\w+%")


def with_home(path: str) -> str:
    """A path or URL with the home folder in place of a `~` or `~user` at its start (`file://~/...` too).

    Raises ConfigError where there is no such user.
    """
    scheme = next((scheme for scheme in SCHEMES if path.startswith(scheme)), "")
    local = path.removeprefix(scheme)
    if not local.startswith("~"):
        return path
    whole = os.path.expanduser(local)
    if whole.startswith("~") and os.path.lexists(local):  # a file that is called so
        return path
    if whole.startswith("~"):
        raise ConfigError(f"{path}: no home folder of {local.partition('/')[0]}: write the whole path")
    return scheme + whole


def check_path(path: str) -> None:
    """Raises ConfigError for a text that would make a folder of an odd name here: it was meant otherwise."""
    if not path.strip():
        raise ConfigError("the path is empty: give one, or leave the key out")
    if WINDOWS.match(path):
        raise ConfigError(f"{path} is a path of Windows: give one of this machine, such as /mnt/c/...")
    if VARIABLE.match(path):
        raise ConfigError(f"{path}: variables are not expanded: write ~ for the home folder, or ${{oc.env:NAME}}")
    if path.startswith("file://") and not path.startswith("file:///"):
        raise ConfigError(f"{path}: write file:///absolute/path, with three slashes, or a plain path")


def expand_paths(section: Any, prefix: str = "") -> None:
    """Expand `~` in every path of a section and of the sections in it. Raises ConfigError naming the key.

    prefix: of the keys in messages.
    """
    for item in dataclasses.fields(section):
        value, key = getattr(section, item.name), f"{prefix}{item.name}"
        if dataclasses.is_dataclass(value):
            expand_paths(value, f"{key}.")
        elif item.metadata.get("path") and value is not None:
            try:
                value = with_home(value)
                check_path(value)
            except ConfigError as error:
                raise ConfigError(f"{key}: {error}") from None
            setattr(section, item.name, value)
