"""docs/reference/cli.md: every command with its arguments, read from its parser."""

from __future__ import annotations

import argparse
import contextlib
import re
import sys
import textwrap
from collections.abc import Iterator
from unittest import mock

from nvg import cli
from pipelines.command_line import job_parser

WIDTH = 120
HEAD = """\
# Commands

<!-- Made by python -m scripts.docs of the parsers. -->

`nvg COMMAND` starts the file of that command: `nvg run` is `python pipelines/run.py`, with the same arguments and the
same exit code. `nvg COMMAND --help` prints the same, and commands to try.

Two arguments mean the same everywhere. `--config` names a YAML file, a path or a URL. `key=value` goes over the file
and sets any field of the [configuration](configuration/index.md), such as `train.lr=2e-4`.

`make` alone prints its targets. Other programs are listed in [benchmarks](../../benchmarks/README.md),
[experiments](../../experiments/README.md) and [campaigns](../reports/campaigns.md).
"""


def page() -> str:
    """The page's text."""
    parts = [HEAD]
    for name in cli.COMMANDS:
        parts += [f"## nvg {name}", "", *_command(parser_of(name)), ""]
    return "\n".join(parts)


def parser_of(name: str) -> argparse.ArgumentParser:
    """The parser of a command: the one that is asked to print its help."""
    found: list[argparse.ArgumentParser] = []

    def print_help(parser: argparse.ArgumentParser, file: object = None) -> None:
        found.append(parser)

    with (
        mock.patch.object(argparse.ArgumentParser, "print_help", print_help),
        mock.patch.object(sys, "argv", sys.argv),  # a command puts its own name there
        mock.patch.dict("os.environ", COLUMNS="1000", NO_COLOR="1"),  # a usage of one line, without colours
        contextlib.suppress(SystemExit),
    ):
        cli.main([name, "--help"])
    (parser,) = found
    return parser


def _command(parser: argparse.ArgumentParser) -> Iterator[str]:
    """What a command does, its usage, and the arguments that are its own."""
    yield (parser.description or "").strip()
    with mock.patch.dict("os.environ", COLUMNS="1000", NO_COLOR="1"):
        usage = parser.format_usage().removeprefix("usage: ").replace(" [-h]", "").strip()
    yield from ("", "```text")
    usage = re.sub(r"\[[^\]]*\]", lambda found: found[0].replace(" ", "\0"), usage)  # brackets stay on one line
    lines = textwrap.wrap(usage, WIDTH, subsequent_indent=" " * 4, break_on_hyphens=False)
    yield from (line.replace("\0", " ") for line in lines)
    yield "```"
    shared = {action.help for action in job_parser("")._actions}  # explained in the head
    rows = [_row(action) for action in parser._actions if action.help not in shared]
    if rows:
        yield from ("", "| argument | |", "| --- | --- |", *rows)


def _row(action: argparse.Action) -> str:
    name = action.option_strings[-1] if action.option_strings else str(action.metavar or action.dest)
    values = ", ".join(f"`{value}`" for value in action.choices or ())
    note = f"{action.help}: {values}" if values else action.help
    return f"| {', '.join(f'`{each}`' for each in name.split(' | '))} | {note} |"
