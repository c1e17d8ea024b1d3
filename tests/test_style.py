"""Rules of the house that a program can check: short functions, files and links that exist."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TREES = ("nvg", "pipelines", "scripts", "benchmarks", "experiments", "examples", "tests")
MOST_LINES = 60  # of a function, docstring included: what fits a screen, with some room
TEXTS = {".py", ".md", ".yaml", ".sh", ".toml", ".js", ".css", ".html", ""}
NAMED = re.compile(
    rf"(?<![\w./-])(?:{'|'.join((*TREES, 'conf', 'docs', 'infra'))})/[\w/.-]*"
    r"\.(?:py|md|yaml|sh|json|png)\b"
)
PLACEHOLDER = re.compile(r"[A-Z]{3,}/")  # nvg/assets/NAME/MODEL_CARD.md
LINK = re.compile(r"\]\(([^)\s]+)\)")


@cache
def files() -> list[Path]:
    """What the repository holds, and what is new in it."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [path for path in map(ROOT.joinpath, listed.splitlines()) if path.is_file()]


def modules() -> list[Path]:
    return [path for path in files() if path.suffix == ".py" and path.relative_to(ROOT).parts[0] in TREES]


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def is_test(path: Path) -> bool:
    return path.name == "conftest.py" or (path.name.startswith("test_") and path.is_relative_to(ROOT / "tests"))


def long_functions(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
            lines = node.end_lineno - node.lineno + 1
            if lines > MOST_LINES:
                yield f"{name(path)}:{node.lineno}: {node.name} has {lines} lines"


@pytest.mark.parametrize("path", [path for path in modules() if not is_test(path)], ids=name)
def test_functions_fit_a_screen(path: Path) -> None:
    assert list(long_functions(path)) == []


def test_a_missing_module_of_ours_fails_a_test_and_skips_none() -> None:
    """pytest.importorskip is for optional packages: with a module of ours it hides that the module is broken."""
    own = re.compile(rf"importorskip\(\s*[\"'](?:{'|'.join(TREES)})\b")
    assert [name(path) for path in modules() if own.search(path.read_text())] == []


def test_no_module_changes_where_python_looks_for_others() -> None:
    changed = re.compile(r"\bsys\.path\b")
    starter = "tests/support/starting.py"  # stands in for a fresh interpreter
    found = [name(path) for path in modules() if changed.search(path.read_text())]
    assert set(found) <= {starter, name(Path(__file__))}


def test_no_note_says_that_something_is_still_to_be_done() -> None:
    note = re.compile(r"\b(?:TO" + r"DO|FIX" + r"ME|XX" + r"X)\b")
    texts = [path for path in files() if path.suffix in TEXTS and path.suffix]
    assert [name(path) for path in texts if note.search(path.read_text())] == []


def test_files_that_a_text_names_exist() -> None:
    """Whoever moves a file mends what is written of it."""
    missing = []
    for path in [path for path in files() if path.suffix in TEXTS]:
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            missing += [
                f"{name(path)}:{number}: {word}"
                for word in NAMED.findall(line)
                if not PLACEHOLDER.search(word) and not (ROOT / word).exists()
            ]
    assert missing == []


def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ +(.+?) *$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", [path for path in files() if path.suffix == ".md"], ids=name)
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(page.read_text()):
        target, _, anchor = link.partition("#")
        if "://" in target or target.startswith("mailto:"):
            continue
        path = page.parent / target if target else page
        assert path.exists(), f"there is no {target}"
        if anchor:
            assert anchor in anchors(path), f"{link}: there is no such heading"
