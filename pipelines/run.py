"""Run the whole pipeline: images -> tokenizer -> tokens -> generators [-> distilled] -> evaluation.

    nvg run --config conf/fashion_mnist.yaml --dry-run
    nvg run --config conf/fashion_mnist.yaml train.steps=500 output=runs/short
    nvg run --config conf/fashion_mnist.yaml --until tokens
    nvg run --config conf/fashion_mnist.yaml --force generators

Every step is a Ray task with retries over durable artifacts (pipelines/steps.py): a step whose artifact is complete is
skipped, an interrupted one goes on from its own checkpoints or parts, and the order is kept by passing each step's
result to the next.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from nvg import storage
from nvg.cluster import PeakMemory, start_ray
from nvg.config import Config
from nvg.console import duration, end, wait_for_end
from nvg.errors import StepFailed, final_error
from nvg.training.jobs import tidy
from pipelines.command_line import job_parser, one_line_errors, read_config
from pipelines.figures import figures_of
from pipelines.steps import STEPS, Artifact, claimed, fetched, make, plan, planned, tidy_up


@one_line_errors()
def main(argv: Sequence[str] | None = None) -> None:
    """Do what is left of all steps, in order. argv: the command line without the program."""
    arguments = _parser().parse_intermixed_args(argv)
    config = read_config(arguments)
    artifacts = plan(config)
    steps = upto(arguments.until, artifacts)
    forced = forced_steps(arguments.force, artifacts)
    todo = [step for step in steps if step in forced or not artifacts[step].complete]
    for step in todo:
        STEPS[step].check(config)

    for step in steps:
        state = "to do" if step in todo else "complete, skipped"
        print(f"{step:<11}{state:<19}{artifacts[step].folder}", flush=True)
    if arguments.dry_run:
        return
    for step in steps:
        if step not in todo:
            tidy_up(artifacts[step])
    if todo:
        with PeakMemory() as memory:
            run_steps(config, artifacts, todo, forced)
        print(f"peak memory of this machine while it ran: {memory.gigabytes:.1f} GB above the start")
    else:
        print("every step is complete: nothing to do")
    print(report(config, artifacts, steps))


def _parser() -> argparse.ArgumentParser:
    parser = job_parser(__doc__)
    names = tuple(STEPS)
    parser.add_argument("--until", choices=names, default=names[-1], help="the last step to run")
    parser.add_argument("--force", choices=names, help="do this step, and those after it, again")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    return parser


# ---- which steps ----


def upto(last: str, artifacts: Mapping[str, Artifact]) -> list[str]:
    """The planned steps up to `last`, in order. Raises ConfigError where `last` is not planned."""
    names = list(artifacts)
    return names[: names.index(planned(last, artifacts).step) + 1]


def forced_steps(first: str | None, artifacts: Mapping[str, Artifact]) -> list[str]:
    """The planned steps from `first`, but for a teacher's. Raises ConfigError where `first` is not planned."""
    if first is None:
        return []
    names = list(artifacts)
    after = names[names.index(planned(first, artifacts).step) :]
    return [step for step in after if not artifacts[step].given]


# ---- running them ----


def run_steps(
    config: Config, artifacts: Mapping[str, Artifact], steps: Sequence[str], forced: Collection[str] = ()
) -> None:
    """Run steps in order as Ray tasks, those of `forced` from nothing.

    Raises StepFailed where one fails for good, OutputBusy where another job makes one of them.
    """
    with claimed(*(artifacts[step] for step in steps)):
        for step in steps:
            if step in forced:
                storage.remove(artifacts[step].folder)
        start_ray(config.cluster)
        readable = {step: fetched(artifact) for step, artifact in artifacts.items()}
        for step, outcome in _submit(config, readable, steps).items():
            start = time.monotonic()
            print(f"\n{step}: {STEPS[step].makes}", flush=True)
            cause = _cause(outcome)
            if cause is not None:
                raise StepFailed(
                    f"step {step} failed: {cause}\nWhat it finished is kept; the same command goes on from there."
                )
            wait_for_end(step)
            print(f"{step}: done in {duration(time.monotonic() - start)}", flush=True)


def _submit(config: Config, artifacts: Mapping[str, Artifact], steps: Sequence[str]) -> dict[str, Any]:
    """A Ray task for each step, which waits for the one before; references to what `try_step` returns."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # Beside this process, on the head of a cluster: on a worker a step would go with a node that leaves, and what Ray
    # Data leaves behind beside it would keep a node that nobody needs.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    settings = {"num_cpus": 0, "max_retries": config.cluster.step_retries, "retry_exceptions": True}
    task = ray.remote(scheduling_strategy=here, **settings)(try_step)
    outcomes: dict[str, Any] = {}
    before = None
    for step in steps:
        before = outcomes[step] = task.options(name=step).remote(step, config, artifacts, before)
    return outcomes


def _cause(outcome: Any) -> Exception | None:
    """Why a step failed for good, None where it did not; waits for it. Prints the traceback of what nobody foresaw."""
    import ray

    try:
        return ray.get(outcome)
    except ray.exceptions.RayError as error:
        print(error, file=sys.stderr, flush=True)
        return getattr(error, "cause", None) or error


def try_step(
    step: str, config: Config, artifacts: Mapping[str, Artifact], before: Exception | None
) -> Exception | None:
    """One step; returns an error that would come again, so that Ray does not try it again. Others are raised.

    before: what the step before came to, whose end this one waits for. Where that is an error, nothing is done.
    """
    if before is not None:
        return before
    try:
        run_step(step, config, artifacts)
        end(step)
    except Exception as error:
        final = final_error(error)
        if final is None:
            raise
        return final
    return None


def run_step(step: str, config: Config, artifacts: Mapping[str, Artifact]) -> None:
    """Make a step's artifact with `timing.json` beside it, unless it is complete."""
    folder = artifacts[step].folder
    if artifacts[step].complete:  # a retry of a task whose work was done when its worker died
        return tidy(folder)
    start = time.time()
    make(step, config, artifacts)
    storage.write_json(storage.join(folder, "timing.json"), {"seconds": round(time.time() - start, 1)})


# ---- the report ----


def report(config: Config, artifacts: Mapping[str, Artifact], steps: Sequence[str]) -> str:
    """The table at the end: the results, how long they took, the figures and the paths."""
    from nvg import tracking

    lines = ["", f"{'step':<12}{'seconds':>8}  result"]
    for step in steps:
        folder = artifacts[step].folder
        timing = storage.join(folder, "timing.json")
        seconds = storage.read_json(timing)["seconds"] if storage.exists(timing) else "-"
        lines.append(f"{step:<12}{seconds:>8}  {folder}")
    if "evaluation" in steps:
        lines += ["", *figures_of(artifacts["evaluation"].folder)]
    lines += ["", f"compare runs:  mlflow ui --backend-store-uri {tracking.tracking_uri(config)}"]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
