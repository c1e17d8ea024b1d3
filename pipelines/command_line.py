"""The command line that all jobs share: `--config FILE key=value ...`, and one way to end it with an error."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from nvg import config as configuration
from nvg import storage, tracking
from nvg.config import Config
from nvg.console import VERBOSE
from nvg.errors import ConfigError, NvgError


def described_parser(docstring: str | None) -> argparse.ArgumentParser:
    """A parser whose help begins with the first line of a file's docstring and ends with its indented lines, which are
    commands to try."""
    description, _, rest = (docstring or "").partition("\n")
    commands = [line for line in rest.splitlines() if line.startswith("    ")]
    return argparse.ArgumentParser(
        description=description,
        epilog="\n".join(("examples:", *commands)) if commands else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def job_parser(docstring: str | None) -> argparse.ArgumentParser:
    """The command line of every job, `--config FILE key=value ...`."""
    result = described_parser(docstring)
    result.add_argument("--config", required=True, help="YAML file, a path or URL (conf/*.yaml)")
    result.add_argument(
        "overrides", nargs="*", metavar="key=value", help="settings over the file, such as train.lr=2e-4"
    )
    result.add_argument("--verbose", action="store_true", help="show all that Ray's processes write")
    return result


def read_config(arguments: argparse.Namespace) -> Config:
    """The configuration that a command line names. Raises ConfigError where it cannot be used."""
    if arguments.verbose:
        os.environ[VERBOSE] = "1"
    config = placed(configuration.load(arguments.config, arguments.overrides))
    remark(config)
    return config


def remark(config: Config) -> None:
    """Print what a command line says of its configuration before it begins: settings that probably mean another thing,
    and a tracking server that is not used."""
    for line in (*configuration.remarks(config), tracking.ignored_server(config)):
        if line is not None:
            print(line, flush=True)


def words(argv: Sequence[str] | None) -> list[str]:
    """The command line without the program: argv, or that of this process where argv is None."""
    return list(sys.argv[1:] if argv is None else argv)


def placed(config: Config) -> Config:
    """The configuration with an output and a tracking store that every node of its cluster understands: relative paths
    are this process's, and with RAY_ADDRESS other processes have other working directories.

    Raises ConfigError for a relative output in a submitted job, which runs in a temporary copy of the working
    directory: what it writes there is lost.
    """
    relative = not (storage.is_url(config.output) or os.path.isabs(config.output))
    if relative and "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
        raise ConfigError(
            f"output={config.output} is relative, and a submitted job runs in a temporary copy of the working "
            "directory: give an absolute path that all nodes share, or a URL (output=$PWD/runs/..., output=s3://...)"
        )
    if not os.environ.get("RAY_ADDRESS"):
        return config
    uri, artifacts = config.tracking.uri, config.tracking.artifacts
    store = dataclasses.replace(
        config.tracking,
        uri=None if uri is None else tracking.absolute_uri(uri),
        artifacts=None if artifacts is None else storage.absolute(artifacts),
    )
    return dataclasses.replace(config, output=storage.absolute(config.output), tracking=store)


def exit_with(message: str) -> None:
    """End the program with one line, `error: ...`, and exit code 1."""
    sys.exit(f"error: {message}")


@contextmanager
def one_line_errors(*also: type[Exception], end: Callable[[str], object] = exit_with) -> Iterator[None]:
    """End the command with one line and no traceback where a person can mend what the block or function raises.

    These are NvgError, FileNotFoundError and the types of `also`. end: what ends the program, given the message.
    """
    mendable: tuple[type[Exception], ...] = (NvgError, FileNotFoundError, *also)
    try:
        yield
    except mendable as error:
        end(str(error))
