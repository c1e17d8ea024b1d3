"""The commands that this repository quotes: where they stand, and what each starts.

`quoted()` collects the shell lines of README.md, docs, infra, the Makefile and the heads of conf/*.yaml, and the
indented lines and inline code of docstrings. `calls()` takes one apart into programs with their arguments.
"""

from __future__ import annotations

import ast
import re
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
TREES = ("nvg", "pipelines", "scripts", "benchmarks", "experiments", "examples", "tests")
PROGRAMS = ("python", ".venv/bin/python", "make", "nvg", "pytest", "ray", "mlflow", "serve", "kubectl", "docker")
ENTRIES = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"].get("scripts", {})
SHELL = ("", "bash", "sh", "shell", "console")  # languages of fenced blocks that hold commands
SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=\S*")
OPTIONAL = re.compile(r"(?:(?<=\s)|^)\[([^\]]+)\](?=\s|$)")  # [--rounds 20]: what may be left out


@dataclass(frozen=True)
class Quoted:
    """A command as some page quotes it."""

    place: str  # file:line
    text: str

    def __str__(self) -> str:
        return f"{self.place}: {self.text}"


# ---- where commands stand ----


@cache
def quoted() -> list[Quoted]:
    """Every command of ours and of Ray and MLflow that a page or a docstring quotes."""
    pages = sorted(
        [*ROOT.glob("*.md"), *(page for tree in (*TREES, "docs", "infra") for page in ROOT.glob(f"{tree}/**/*.md"))]
    )
    found = [item for page in pages for item in _of_page(_name(page), page.read_text())]
    for path in sorted([*ROOT.glob("conf/**/*.yaml"), *ROOT.glob("infra/**/*.yaml"), ROOT / "Makefile"]):
        found += _of_comments(_name(path), path.read_text())
    for path in sorted(path for tree in TREES for path in ROOT.glob(f"{tree}/**/*.py")):
        found += _of_docstrings(_name(path), path.read_text())
    return found


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _of_page(name: str, text: str) -> Iterator[Quoted]:
    """Fenced shell blocks, indented lines, inline code."""
    fence: str | None = None
    lines: list[tuple[int, str]] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if line.lstrip().startswith("```"):
            fence = line.strip().strip("`").strip() if fence is None else None
            continue
        if fence is None:
            yield from (Quoted(f"{name}:{number}", span) for span in SPAN.findall(line) if _is_command(span))
        if fence in SHELL if fence is not None else line.startswith("    "):
            lines.append((number, line))
    yield from _of_lines(name, lines)


def _of_comments(name: str, text: str) -> Iterator[Quoted]:
    """Indented lines and inline code of comments."""
    lines = [
        (number, line.lstrip()[1:])
        for number, line in enumerate(text.splitlines(), start=1)
        if line.lstrip().startswith("#")
    ]
    yield from _of_lines(name, [(number, line) for number, line in lines if line.startswith("   ")])
    for number, line in lines:
        yield from (Quoted(f"{name}:{number}", span) for span in SPAN.findall(line) if _is_command(span))


def _of_docstrings(name: str, text: str) -> Iterator[Quoted]:
    """Indented lines and inline code of every docstring of a module."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            content = ast.get_docstring(node) or ""
            first = getattr(node, "lineno", 1)
            lines = list(enumerate(content.splitlines(), start=first))
            yield from _of_lines(name, [(number, line) for number, line in lines if line.startswith("    ")])
            for number, line in lines:
                yield from (Quoted(f"{name}:{number}", span) for span in SPAN.findall(line) if _is_command(span))


def _of_lines(name: str, lines: list[tuple[int, str]]) -> Iterator[Quoted]:
    """Commands of lines; a backslash at a line's end goes on with the next."""
    unfinished: tuple[int, str] | None = None
    for number, line in lines:
        first, text = unfinished or (number, "")
        text += " " + line.strip()
        unfinished = None
        if text.endswith("\\"):
            unfinished = (first, text[:-1].rstrip())
        elif _is_command(text):
            yield Quoted(f"{name}:{first}", text.strip())


def _is_command(text: str) -> bool:
    words = text.split()
    while words and ASSIGNMENT.fullmatch(words[0]):
        words = words[1:]
    if words[:1] == ["time"]:
        words = words[1:]
    return len(words) > 1 and words[0] in PROGRAMS


# ---- what they say ----


@dataclass(frozen=True)
class Call:
    """One program with its arguments: a `module` or `script` of Python, an `entry` of pyproject.toml, a `click` program
    of Ray or MLflow, `tests` for pytest, or `other`."""

    kind: str
    name: str
    arguments: tuple[str, ...]


def calls(text: str) -> list[Call]:
    """The programs that a shell line starts, those of pipes, of `&&`, of $(...) and after `--` included."""
    inner = re.findall(r"\$\(([^()]*)\)", text)
    text = re.sub(r"\$\([^()]*\)", "", text)
    text = re.sub(r"\s+#.*|\s{3,}(?![-'\"]|[\w.]+=).*", "", text.strip())  # a comment, or prose beside the command
    text = OPTIONAL.sub(lambda found: re.sub(r"(\w)\|[\w|]+", r"\1", found[1]), text)
    lexer = shlex.shlex(text, posix=True, punctuation_chars="&|;")
    lexer.whitespace_split, lexer.commenters = True, ""
    groups: list[list[str]] = [[]]
    for word in lexer:
        if set(word) <= set("&|;"):
            groups.append([])
        elif not word.startswith("$"):
            groups[-1].append(word)
    found = [call for group in groups for call in _of_words(group)]
    return found + [call for part in inner for call in calls(part)]


def _of_words(words: list[str]) -> list[Call]:
    while words and (ASSIGNMENT.fullmatch(words[0]) or words[0] in ("exec", "time")):
        words = words[1:]
    if not words:
        return []
    program, rest = Path(words[0]).name, words[1:]
    if program in ("python", "python3"):
        return _of_python(rest)
    kind = "other"
    if program in ENTRIES:
        kind, program = "entry", ENTRIES[program]
    elif program in ("ray", "mlflow", "serve"):
        kind = "click"
    elif program in ("pytest", "test.sh"):
        kind = "tests"
    if kind == "click" and "--" in rest:  # ray job submit ... -- the job's command
        at = rest.index("--")
        return [Call(kind, program, tuple(rest[:at])), *_of_words(rest[at + 1 :])]
    return [Call(kind, program, tuple(rest))]


def _of_python(words: list[str]) -> list[Call]:
    while words[:1] == ["-X"]:
        words = words[2:]
    if words[:1] == ["-c"]:
        compile(words[1], "-c", "exec")
        return []
    if words[:2] == ["-m", "pytest"]:
        return [Call("tests", "pytest", tuple(words[2:]))]
    kind, name, rest = ("module", words[1], words[2:]) if words[0] == "-m" else ("script", words[0], words[1:])
    call = Call(kind, name, tuple(rest))
    if "--" in rest[:-1] and rest[rest.index("--") + 1].endswith(".py"):  # a job that a campaign runs
        return [call, *_of_python(rest[rest.index("--") + 1 :])]
    return [call]
