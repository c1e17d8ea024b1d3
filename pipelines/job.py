"""A step as a job of its own, which is all that `pipelines/train.py` and the files beside it do when they are run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from nvg.cluster import start_ray, warn_of_no_room_beside
from nvg.config import Config, GeneratorTrainingConfig
from nvg.errors import CheckpointError
from pipelines.command_line import job_parser, one_line_errors, read_config, words
from pipelines.steps import STEPS, Artifact, claimed, fetched, inputs, make, plan, planned, tidy_up


@one_line_errors()
def run_job(step: str, argv: Sequence[str] | None, docstring: str | None) -> None:
    """Make a step's artifact as a command line asks, unless it is complete.

    argv: the command line without the program, None for that of this process. docstring: of the job's file.
    """
    arguments = words(argv)
    config = read_config(job_parser(docstring).parse_intermixed_args(arguments))
    made = make_artifact(step, config, arguments)
    if made is not None:
        print(f"{step}: {made.folder}", flush=True)


def make_artifact(step: str, config: Config, arguments: Sequence[str]) -> Artifact | None:
    """Make a step's artifact on the Ray of RAY_ADDRESS or one that is started for it; None where it is complete.

    Raises ConfigError where the configuration has no such step or it cannot work, CheckpointError naming the command
    that makes a missing input (arguments: those of this one), OutputBusy where another job makes the same artifact.
    """
    artifacts = plan(config)
    artifact = planned(step, artifacts)
    if already(artifact):
        return None
    for needed in inputs(step, artifacts):
        require(needed, arguments)
    STEPS[step].check(config)
    with claimed(artifact):
        start_ray(config.cluster)
        make(step, config, {name: fetched(artifact) for name, artifact in artifacts.items()})
    return artifact


def evaluation_beside(config: Config, section: GeneratorTrainingConfig) -> Callable[[Config, str], Any] | None:
    """What evaluates the samplers that a training leaves while it goes on, None where its section asks for none."""
    if not section.evaluate_every:
        return None
    import ray

    from nvg.evaluation.beside import evaluate_beside

    warn_of_no_room_beside(ray.cluster_resources(), config.cluster)
    return partial(evaluate_beside, samples=section.evaluate_samples)


def already(artifact: Artifact) -> bool:
    """Whether a step is complete; says so, and tidies up after a job that was killed before it could."""
    if not artifact.complete:
        return False
    tidy_up(artifact)
    print(f"{artifact.step}: complete, nothing to do ({artifact.folder})", flush=True)
    return True


def require(artifact: Artifact, arguments: Sequence[str]) -> None:
    """Raises CheckpointError, naming the command that makes the artifact, where it is not complete."""
    if not artifact.complete:
        raise CheckpointError(
            f"this job needs the result of step {artifact.step}, and {artifact.folder} is missing or not finished. "
            f"Make it with: python {STEPS[artifact.step].script} {' '.join(arguments)}"
        )
