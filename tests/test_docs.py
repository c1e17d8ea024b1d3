"""The pages of docs/: each is short, in the navigation of the site, and says what the code says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks import __main__ as benchmarks
from benchmarks import report
from scripts.docs import hooks, http
from scripts.docs.__main__ import HTTP, ROOT, made

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("**/*.md"))
SITE = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
MOST_LINES, MOST_CHARACTERS = 200, 120
FORMULAS = DOCS / "method.md"  # one page however long, so that a formula is found by its section's number
BEGIN = re.compile(r"<!-- .*(?:written|compared) by .*-->")
MADE = "<!-- Made by python -m scripts.docs"


def name(path: Path) -> str:
    return str(path.relative_to(DOCS))


def in_navigation(part: Any) -> list[str]:
    """The files that a part of mkdocs.yml's nav names."""
    if isinstance(part, str):
        return [part]
    return [page for item in (part.values() if isinstance(part, dict) else part) for page in in_navigation(item)]


def written_by_hand(text: str) -> list[tuple[int, str]]:
    """The numbered lines of a page but for the tables that a program writes."""
    lines, inside, whole = [], False, MADE in text
    for number, line in enumerate(text.splitlines(), start=1):
        if line.startswith("<!-- "):
            inside = bool(BEGIN.match(line))
        if not ((inside or whole) and line.startswith("|")):
            lines.append((number, line))
    return lines


def test_every_page_is_in_the_navigation_once() -> None:
    assert sorted(in_navigation(SITE["nav"])) == sorted(map(name, PAGES))


@pytest.mark.parametrize("page", [page for page in PAGES if page != FORMULAS], ids=name)
def test_a_page_is_short(page: Path) -> None:
    assert len(page.read_text().splitlines()) <= MOST_LINES


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_lines_are_short(page: Path) -> None:
    lines = [(number, len(line)) for number, line in written_by_hand(page.read_text())]
    assert [number for number, length in lines if length > MOST_CHARACTERS] == []


def test_a_long_line_is_seen_and_a_row_that_a_program_writes_is_not() -> None:
    row = f"| {'x' * MOST_CHARACTERS} |"
    text = f"{row}\n<!-- a: written by b -->\n{row}\n{row[2:]}\n<!-- end of a -->\n{row}\n"
    assert [number for number, line in written_by_hand(text) if len(line) >= MOST_CHARACTERS] == [1, 4, 6]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_a_page_has_one_title(page: Path) -> None:
    text = re.sub(r"^```.*?^ *```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    assert len(re.findall(r"^# ", text, re.MULTILINE)) == 1 and text.startswith("# ")


# ---- pages that follow from the code ----


@pytest.fixture(scope="module")
def written() -> dict[Path, str]:
    return made()


def test_made_pages_are_what_the_code_says(written: dict[Path, str]) -> None:
    differ = [name(path) for path, text in written.items() if not path.exists() or path.read_text() != text]
    assert differ == [], "run: python -m scripts.docs"


def test_every_page_that_says_it_is_made_is(written: dict[Path, str]) -> None:
    said = {page for page in PAGES if MADE in page.read_text()}
    assert said == {path for path in written if path.suffix == ".md"} - {HTTP}


def test_the_http_page_has_every_route_and_every_field_of_a_request() -> None:
    text, document = HTTP.read_text(), http.document()
    for path, operations in document["paths"].items():
        for method in operations:
            assert f"| `{method.upper()} {path}` |" in text
    form = document["paths"]["/v1/images/edits"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    for field in (*document["components"]["schemas"]["GenerationRequest"]["properties"], *form["properties"]):
        assert f"| `{field}` |" in text


def test_a_page_without_a_place_for_a_table_is_refused() -> None:
    with pytest.raises(ValueError, match="routes: written by"):
        http.page("# HTTP API\n")


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ({"type": "integer", "minimum": 1, "maximum": 64}, "whole number 1 ... 64"),
        ({"type": "integer", "minimum": 0, "maximum": 2147483647}, "whole number 0 ... 2147483647"),
        ({"type": "number"}, "number"),
        ({"type": "boolean"}, "true, false"),
        ({"enum": ["png", "jpeg"], "type": "string"}, "`png`, `jpeg`"),
        ({"const": "opaque", "type": "string"}, "`opaque`"),
        ({"type": "string", "format": "binary"}, "file"),
        ({"anyOf": [{"type": "string"}, {"type": "integer"}, {"type": "null"}]}, "text or whole number"),
        ({"type": "array", "items": {"type": "array", "items": {"type": "integer"}}}, "list of lists of whole numbers"),
        ({"$ref": "#/components/schemas/Usage"}, "object"),
    ],
    ids=str,
)
def test_a_field_is_described_in_words(field: dict[str, Any], words: str) -> None:
    assert http.kind(field) == words


def test_every_section_of_the_benchmarks_has_one_place() -> None:
    reports = [DOCS / "reports" / file for file in ("benchmarks.md", "benchmarks_parts.md")]
    for section in benchmarks.SECTIONS:
        assert sum(report.has_place(page.read_text(), section) for page in reports) == 1, section


def test_benchmarks_refuse_a_page_without_a_place_before_they_measure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Benchmarks\n")
    with pytest.raises(SystemExit):
        benchmarks.main(["--only", "reading", "--doc", str(page)])
    assert f"{page} has no place for reading: choose its sections with --only" in capsys.readouterr().err


# ---- the site ----


@pytest.fixture
def build(tmp_path: Path) -> Callable[[str], subprocess.CompletedProcess[str]]:
    """build(text): the site of one page, by the command of scripts/test.sh and the checks of mkdocs.yml."""
    pytest.importorskip("mkdocs")
    found = re.search(r"bin/mkdocs (build .*)$", (ROOT / "scripts" / "test.sh").read_text(), re.MULTILINE)
    assert found
    config = {"site_name": "a", "nav": [{"A": "a.md"}], "plugins": [], "validation": SITE["validation"]}
    (tmp_path / "mkdocs.yml").write_text(yaml.safe_dump(config))
    (tmp_path / "docs").mkdir()

    def run(text: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "docs" / "a.md").write_text(text)
        command = [sys.executable, "-m", "mkdocs", *found[1].split()]
        environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    return run


@pytest.mark.slow
def test_the_strict_build_stops_at_every_broken_link(build: Callable[[str], subprocess.CompletedProcess[str]]) -> None:
    done = build("# A\n\n[a](a.md#a), [b](https://arxiv.org)\n")
    assert done.returncode == 0, done.stderr
    for link in ("[a](b.md)", "[a](a.md#b)", "[a](#b)", "![a](b.png)", "[a](/a.md)", "[a](b)"):
        done = build(f"# A\n\n{link}\n")
        assert done.returncode == 1 and "a.md' contains" in done.stderr, f"{link}: {done.stderr}"


@pytest.mark.parametrize(
    ("link", "leads_to"),
    [
        ("[code](../../nvg/cli.py)", "[code](https://forge/o/nvg/blob/main/nvg/cli.py)"),
        ("[a part](../../CONTRIBUTING.md#style)", "[a part](https://forge/o/nvg/blob/main/CONTRIBUTING.md#style)"),
        ("[a folder](../../infra/ray)", "[a folder](https://forge/o/nvg/tree/main/infra/ray)"),
        ("[a page](../method.md#words)", "[a page](../method.md#words)"),
        ("[elsewhere](https://arxiv.org/abs/2508.12811)", "[elsewhere](https://arxiv.org/abs/2508.12811)"),
    ],
)
def test_links_out_of_the_pages_lead_to_the_forge(link: str, leads_to: str) -> None:
    page = DOCS / "guides" / "demo.md"
    assert hooks.outside(f"See {link}.", page, "https://forge/o/nvg") == f"See {leads_to}."
    words = link[1:].partition("]")[0]
    assert hooks.outside(link, page, None) == (link if link == leads_to else words)


def test_a_link_to_a_file_that_is_not_there_stops_the_site() -> None:
    with pytest.raises(FileNotFoundError, match=r"docs/guides/demo\.md: there is no \.\./\.\./nvg/none\.py"):
        hooks.outside("[none](../../nvg/none.py)", DOCS / "guides" / "demo.md", None)


@pytest.mark.parametrize(
    ("named", "address"),
    [
        ("https://forge/o/nvg.git", "https://forge/o/nvg"),
        ("git@forge:o/nvg.git", "https://forge/o/nvg"),
        ("ssh://git@forge/o/nvg", "https://forge/o/nvg"),
        ("/srv/git/nvg", None),
        ("", None),
    ],
)
def test_the_repository_is_found_by_its_remote(
    named: str, address: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NVG_REPOSITORY", named)
    assert hooks.repository() == address
