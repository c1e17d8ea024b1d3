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
from collections.abc import Iterator
from functools import cache

import pytest

from tests.support.commands import ROOT, TREES, Call, Quoted, calls, quoted

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # every program of the project is started once

Problems = dict[tuple[str, str, str], str]  # by kind, name and arguments
STARTED = ("module", "script", "entry", "click")
OWN = re.compile(rf"(?:{'|'.join((*TREES, 'conf', 'docs', 'infra'))})/[^\s:]*")
FOREIGN = ("evaluator.py",)  # of ADM's evaluation suite, which docs/guides/evaluate.md says how to use


@cache
def once() -> list[Quoted]:
    """Every quoted command, with one of its places."""
    return list({item.text: item for item in quoted()}.values())


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
    for call in [call for item in once() for call in programs(item.text) if call.kind in STARTED]:
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
    assert len(once()) > 100
    names = {call.name for item in once() for call in programs(item.text)}
    assert {"pipelines/run.py", "benchmarks", "ray", "mlflow", "make", "pytest"} <= names


def test_every_quoted_command_starts(problems: Problems) -> None:
    faults = [f"{item}: {fault}" for item in once() for fault in faults_of(item, problems)]
    assert not faults, "\n".join(faults)


def faults_of(item: Quoted, problems: Problems) -> Iterator[str]:
    """What is wrong with a quoted command."""
    for call in programs(item.text):
        for name in OWN.findall(" ".join((call.name, *call.arguments))):
            if not list(ROOT.glob(name.rstrip("/"))):
                yield f"there is no {name}"
        for words in ("", "--help", " ".join(call.arguments)):  # "": the program as a whole
            if problem := problems.get((call.kind, call.name, words)):
                yield f"{call.name} {words}: {problem}"
        if call.kind == "tests":
            yield from faults_of_tests(list(call.arguments))


def faults_of_tests(arguments: list[str]) -> Iterator[str]:
    """Paths that do not exist, and node ids and words of -k that name no test there."""
    names: set[str] = set()
    for word in [word for word in arguments if word.startswith("tests")]:
        path, *inside = word.split("::")
        files = [ROOT / path] if path.endswith(".py") else sorted((ROOT / path).glob("**/test_*.py"))
        if not files or not all(file.exists() for file in files):
            yield f"there is no {path}"
            continue
        defined = {node.name for file in files for node in ast.walk(ast.parse(file.read_text())) if is_named(node)}
        if not set(inside) <= defined:
            yield f"{path} has no {'::'.join(inside)}"
        names |= defined | {file.stem for file in files}
    if "-k" in arguments:
        for word in set(re.findall(r"\w+", arguments[arguments.index("-k") + 1])) - {"and", "or", "not"}:
            if not any(word in name for name in names):
                yield f"no test is called {word}"


def test_a_wrong_command_is_a_fault() -> None:
    absent = "no_such_thing"
    for text, fault in (
        (f"python -m pytest tests/{absent}.py", f"there is no tests/{absent}.py"),
        (f"python -m pytest tests/test_cli.py::{absent}", f"tests/test_cli.py has no {absent}"),
        (f"pytest tests/test_cli.py -k {absent}", f"no test is called {absent}"),
        (f"python pipelines/{absent}.py --help", f"there is no pipelines/{absent}.py"),
    ):
        assert fault in list(faults_of(Quoted("here", text), {}))
    wrong = {("script", "pipelines/run.py", "--helo"): "ended with 2"}
    assert list(faults_of(Quoted("here", "python pipelines/run.py --helo"), wrong)) == [
        "pipelines/run.py --helo: ended with 2"
    ]


def is_named(node: ast.AST) -> bool:
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
