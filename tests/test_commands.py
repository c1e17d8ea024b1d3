"""Every command that README, docs and docstrings quote starts: its program exists and takes its arguments.

Programs of ours are started with the quoted arguments until they have read them (tests/support/starting.py), with
--help too; a target of make is expanded (make -n), and the commands that it would run are looked at in their turn.
Nothing is done, and no Ray is started.
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from functools import cache

import pytest

from tests.support.commands import ROOT, TREES, Call, Quoted, calls, quoted

pytestmark = pytest.mark.slow  # every program of the project is started once

Problems = dict[tuple[str, str, str], str]  # by kind, name and arguments
QUOTED = list({item.text: item for item in quoted()}.values())
STARTED = ("module", "script", "entry", "click")
OWN = re.compile(rf"(?:{'|'.join((*TREES, 'conf', 'docs', 'infra'))})/[^\s:]*")
FOREIGN = ("evaluator.py",)  # of ADM's evaluation suite, which docs/guides/evaluate.md says how to use


@cache
def expanded(arguments: tuple[str, ...]) -> str:
    """What `make` would run."""
    done = subprocess.run(["make", "-n", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.replace("\\\n", " ")


def programs(text: str) -> list[Call]:
    """The programs behind a shell line, those that make would run included, but for others' scripts."""
    found = []
    for call in calls(text):
        found.append(call)
        if call.name == "make":
            found += [inner for line in expanded(call.arguments).splitlines() for inner in calls(line)]
    return [call for call in found if call.name not in FOREIGN]


@pytest.fixture(scope="module")
def problems() -> Problems:
    """What was wrong with the programs that were started."""
    lists: dict[tuple[str, str], set[tuple[str, ...]]] = {}
    for call in [call for item in QUOTED for call in programs(item.text) if call.kind in STARTED]:
        lists.setdefault((call.kind, call.name), {("--help",)}).add(call.arguments)
    request = [[kind, name, sorted(some)] for (kind, name), some in sorted(lists.items())]
    command = [sys.executable, "-m", "tests.support.starting"]
    done = subprocess.run(command, cwd=ROOT, input=json.dumps(request), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout.splitlines()[-1])
    return {(kind, name, words): problem for kind, name, found in answers for words, problem in found.items()}


def test_commands_are_found_wherever_they_are_quoted() -> None:
    places = {item.place.split(":")[0] for item in quoted()}
    assert {"README.md", "docs/reports/scale.md", "conf/fashion_mnist.yaml", "benchmarks/load_test.py"} <= places
    assert len(QUOTED) > 100
    names = {call.name for item in QUOTED for call in programs(item.text)}
    assert {"pipelines/run.py", "benchmarks", "ray", "mlflow", "make", "pytest"} <= names


@pytest.mark.parametrize("item", QUOTED, ids=str)
def test_a_quoted_command_starts(item: Quoted, problems: Problems) -> None:
    for call in programs(item.text):
        for name in OWN.findall(" ".join((call.name, *call.arguments))):
            assert list(ROOT.glob(name.rstrip("/"))), f"{item}: there is no {name}"
        for words in ("", "--help", " ".join(call.arguments)):  # "": the program as a whole
            problem = problems.get((call.kind, call.name, words))
            assert problem is None, f"{item}: {call.name} {words}: {problem}"
        if call.kind == "tests":
            check_tests(list(call.arguments), item)


def check_tests(arguments: list[str], item: Quoted) -> None:
    """Paths exist, and node ids and the words of -k name a test there."""
    names: set[str] = set()
    for word in [word for word in arguments if word.startswith("tests")]:
        path, *inside = word.split("::")
        files = [ROOT / path] if path.endswith(".py") else sorted((ROOT / path).glob("**/test_*.py"))
        assert files and all(file.exists() for file in files), f"{item}: there is no {path}"
        defined = {node.name for file in files for node in ast.walk(ast.parse(file.read_text())) if is_named(node)}
        assert set(inside) <= defined, f"{item}: {path} has no {'::'.join(inside)}"
        names |= defined | {file.stem for file in files}
    if "-k" in arguments:
        for word in set(re.findall(r"\w+", arguments[arguments.index("-k") + 1])) - {"and", "or", "not"}:
            assert any(word in name for name in names), f"{item}: no test is called {word}"


def is_named(node: ast.AST) -> bool:
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
