"""The command line that all jobs share: `--config FILE key=value ...`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from nvg import config as configuration
from nvg import storage
from nvg.config import Config
from nvg.errors import ConfigError


def job_parser(description: str) -> argparse.ArgumentParser:
    """The command line of every job: --config FILE key=value ..."""
    result = argparse.ArgumentParser(description=description)
    result.add_argument("--config", required=True, help="YAML file, a path or URL (conf/*.yaml)")
    result.add_argument(
        "overrides", nargs="*", metavar="key=value", help="settings over the file, such as train.lr=2e-4"
    )
    return result


def read_config(arguments: argparse.Namespace) -> Config:
    """The configuration that a command line names. Ends the job with one clear line where it cannot be used."""
    try:
        config = configuration.load(arguments.config, arguments.overrides)
        check_output(config)
    except ConfigError as error:
        sys.exit(f"error: {error}")
    return config


def parse_config(argv: Sequence[str] | None, description: str) -> Config:
    """The configuration of a job that has no options of its own."""
    return read_config(job_parser(description).parse_intermixed_args(argv))


def check_output(config: Config) -> None:
    """A submitted job runs in a temporary copy of the working directory: what it writes there is lost.

    Raises ConfigError for a relative output in a Ray job.
    """
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ and not (
        storage.is_url(config.output) or os.path.isabs(config.output)
    ):
        raise ConfigError(
            f"output={config.output} is relative, and a submitted job runs in a temporary copy of the working "
            "directory: give an absolute path that all nodes share, or a URL (output=$PWD/runs/..., output=s3://...)"
        )
