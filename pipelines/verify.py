"""Check artifacts before a cluster is spent on them: token sets, tokenizers, samplers, training checkpoints.

    nvg verify --config conf/fashion_mnist.yaml --step tokens
    nvg verify runs/fashion_mnist/generators-KEY

The first form checks what the configuration's jobs have made, against its images: some are encoded again. The second
one checks folders by themselves. One line a check; exit code 0: all is well, 1: a check failed, 2: bad usage.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from nvg import config as configuration
from nvg import storage
from nvg.artifacts.models import load_tokenizer
from nvg.config import Config
from nvg.data import open_source
from nvg.errors import ConfigError
from nvg.verify import Check, TokenChecks, check_folder, check_weights, some_images
from pipelines.build_tokens import token_format
from pipelines.command_line import described_parser, one_line_errors
from pipelines.steps import STEPS, Artifact, fetched, plan

CHECKED = tuple(step for step in STEPS if step != "evaluation")  # an evaluation holds figures and pictures alone
UNFINISHED = "not there, or not finished"


def check_step(config: Config, artifacts: Mapping[str, Artifact], step: str, images: int) -> Iterator[Check]:
    """The checks of a step's artifact, with `images` of the training images."""
    folder, source = artifacts[step].folder, open_source(config.data, "train")
    if step == "tokens":
        tokenizer = artifacts["tokenizer"].folder
        expected = token_format(config, tokenizer, source)
        yield from TokenChecks(folder, expected, load_tokenizer(tokenizer), (source, config, images)).run()
    else:
        yield from check_weights(folder, np.concatenate([pixels for *_, pixels in some_images(source, config, images)]))


def report(title: str, checks: Iterable[Check]) -> int:
    """Print checks as they are made; returns how many failed."""
    print(title, flush=True)
    failed = 0
    try:
        for check in checks:
            print(f"  {check}", flush=True)
            failed += not check.ok
    except (ValueError, OSError) as error:  # what the checks need is not there
        print(f"  {Check('artifact', False, str(error))}", flush=True)
        failed += 1
    return failed


def check_steps(config: Config, only: str | None, images: int) -> int:
    """Report on the artifacts of all steps, or of one, which must then be complete; returns how many checks failed.

    Where none is complete, that is a failure too. Raises ConfigError where the configuration has no step `only`.
    """
    artifacts = plan(config)
    steps = [step for step in CHECKED if step in artifacts and only in (None, step)]
    if not steps:
        raise ConfigError(f"this configuration has no step {only}")
    complete = [step for step in steps if artifacts[step].complete]
    failed = 0
    for step in steps:
        title = f"{step}: {artifacts[step].folder}"
        if step in complete:
            within_reach = {name: fetched(artifact) for name, artifact in artifacts.items()}
            failed += report(title, check_step(config, within_reach, step, images))
        elif only or not complete:
            failed += report(title, [Check(storage.LAST_FILE, False, UNFINISHED)])
        else:
            print(f"{title}\n  {UNFINISHED}", flush=True)
    return failed


def check_folders(folders: Sequence[str]) -> int:
    """Report on some folders; returns how many checks failed. Raises FileNotFoundError before any, where one is not
    there."""
    folders = [configuration.with_home(folder) for folder in folders]
    for folder in folders:
        if not storage.exists(folder):
            raise FileNotFoundError(f"{folder}: no such folder")
    return sum(report(folder, check_folder(folder)) for folder in folders)


def main(argv: Sequence[str] | None = None) -> int:
    """Check and print; returns the exit code. argv: the command line without the program."""
    parser = described_parser(__doc__)
    parser.add_argument("--config", help="YAML file, a path or URL: check what its jobs have made")
    parser.add_argument("--step", choices=CHECKED, help="only this step's artifact, which must be there")
    parser.add_argument("--images", type=int, default=64, help="training images to encode again (default 64)")
    parser.add_argument("items", nargs="*", metavar="key=value | FOLDER", help="settings with --config, else folders")
    arguments = parser.parse_intermixed_args(argv)
    if arguments.images < 1 or (arguments.config is None and (arguments.step or not arguments.items)):
        parser.error("give --config FILE, or folders to check; --images at least 1")
    with one_line_errors(ValueError, OSError, end=parser.error):
        if arguments.config is None:
            failed = check_folders(arguments.items)
        else:
            config = configuration.load(arguments.config, arguments.items)
            failed = check_steps(config, arguments.step, arguments.images)
    print(f"FAIL: {failed} checks" if failed else "ok: every check passed", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
