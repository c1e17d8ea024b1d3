"""The whole pipeline: images -> tokenizer -> tokens -> generators [-> distilled] -> evaluation.

    python pipelines/run.py --config conf/fashion_mnist.yaml [--until STEP] [--force STEP] [--dry-run] key=value ...

Every step is a Ray task with retries over durable artifacts (pipelines/steps.py): a step whose artifact is complete is
skipped, an interrupted one goes on from its own checkpoints or parts, and the order is kept by passing each step's
result to the next.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from nvg import storage
from nvg.cluster import PeakMemory, start_ray
from nvg.config import Config
from nvg.errors import ConfigError, NvgError, OutputBusy
from nvg.training.jobs import tidy
from pipelines.command_line import job_parser, read_config
from pipelines.steps import (
    ERRORS,
    STEPS,
    Artifact,
    as_drawn,
    check_evaluation,
    claimed,
    fetched,
    plan,
    sampler_artifact,
    tidy_up,
)


def main(argv: Sequence[str] | None = None) -> None:
    """Do what is left of all steps, in order. argv: the command line without the program."""
    parser = job_parser(__doc__.split("\n")[0])
    parser.add_argument("--until", choices=STEPS, default=STEPS[-1], help="the last step to run")
    parser.add_argument("--force", choices=STEPS, help="do this step, and those after it, again")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    arguments = parser.parse_intermixed_args(argv)
    config = read_config(arguments)
    try:
        artifacts = plan(config)
        if "distilled" in (arguments.until, arguments.force) and "distilled" not in artifacts:
            raise ConfigError("distill.steps=0: there is no such step; say how many steps to train")
        wanted = [step for step in STEPS[: STEPS.index(arguments.until) + 1] if step in artifacts]
        if "evaluation" in wanted and (arguments.force or not artifacts["evaluation"].complete):
            check_evaluation(config)
    except ERRORS as error:
        sys.exit(f"error: {error}")
    after = STEPS[STEPS.index(arguments.force) :] if arguments.force else ()
    forced = [step for step in after if step in artifacts and not artifacts[step].given]

    todo = [step for step in wanted if step in forced or not artifacts[step].complete]
    for step in wanted:
        state = "to do" if step in todo else "complete, skipped"
        print(f"{step:<11}{state:<19}{artifacts[step].folder}", flush=True)
    if arguments.dry_run:
        return
    for step in wanted:
        if step not in todo:
            tidy_up(artifacts[step])
    if not todo:
        print("every step is complete: nothing to do")
    else:
        with PeakMemory() as memory:
            run_steps(config, artifacts, todo, [step for step in todo if step in forced])
        print(f"peak memory of this machine while it ran: {memory.gigabytes:.1f} GB above the start")
    print(report(config, artifacts, wanted))


def run_steps(config: Config, artifacts: dict[str, Artifact], steps: Sequence[str], forced: Sequence[str] = ()) -> None:
    """Run steps in order as Ray tasks, those of `forced` from nothing. Ends the program with the step's name where one
    fails for good, and where another job makes one of them."""
    try:
        with claimed(*(artifacts[step] for step in steps)):
            for step in forced:
                storage.remove(artifacts[step].folder)
            _run(config, {step: fetched(artifact) for step, artifact in artifacts.items()}, steps)
    except OutputBusy as error:
        sys.exit(f"error: {error}")


def _run(config: Config, artifacts: dict[str, Artifact], steps: Sequence[str]) -> None:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    start_ray(config.cluster)
    # Beside this process, on the head of a cluster: on a worker a step would go with a node that leaves, and what Ray
    # Data leaves behind beside it would keep a node that nobody needs.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    settings = {"num_cpus": 0, "max_retries": config.cluster.step_retries, "retry_exceptions": True}
    task = ray.remote(scheduling_strategy=here, **settings)(try_step)
    done = None
    tasks = {}
    for step in steps:
        done = tasks[step] = task.options(name=step).remote(step, config, artifacts, done)
    for step in steps:
        try:
            cause = ray.get(tasks[step])
        except ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None) or error
        if cause is not None:
            sys.exit(
                f"error: step {step} failed: {cause}\nWhat it finished is kept; the same command goes on from there."
            )


def try_step(step: str, config: Config, artifacts: dict[str, Artifact], before: Exception | None) -> Exception | None:
    """One step; returns an error that would come again, so that Ray does not try it again. Others are raised.

    before: what the step before came to, whose end this one waits for. Where that is an error, nothing is done.
    """
    if before is not None:
        return before
    try:
        run_step(step, config, artifacts)
    except NvgError as error:
        if not error.final:
            raise
        return error
    return None


def run_step(step: str, config: Config, artifacts: dict[str, Artifact]) -> None:
    """One step, unless it is done."""
    from pipelines.build_tokens import build_tokens
    from pipelines.distill import distill_generators
    from pipelines.evaluate import evaluate
    from pipelines.train import train_generators
    from pipelines.train_tokenizer import train_tokenizer

    folder = {name: artifact.folder for name, artifact in artifacts.items()}
    if artifacts[step].complete:  # a retry of a task whose work was done when its worker died
        return tidy(folder[step])
    begun = time.time()
    if step == "tokenizer":
        train_tokenizer(config, folder["tokenizer"])
    elif step == "tokens":
        build_tokens(config, folder["tokenizer"], folder["tokens"])
    elif step == "generators":
        train_generators(config, folder["tokenizer"], folder["tokens"], folder["generators"])
    elif step == "distilled":
        distill_generators(config, folder["generators"], folder["tokens"], folder["distilled"])
    else:
        evaluate(as_drawn(config), sampler_artifact(artifacts).folder, folder["evaluation"])
    storage.write_json(storage.join(folder[step], "timing.json"), {"seconds": round(time.time() - begun, 1)})


def report(config: Config, artifacts: dict[str, Artifact], steps: Sequence[str]) -> str:
    """The table at the end: what was made, how long it took, the figures and the paths."""
    lines = ["", f"{'step':<12}{'seconds':>8}  result"]
    for step in steps:
        folder = artifacts[step].folder
        timing = storage.join(folder, "timing.json")
        seconds = storage.read_json(timing)["seconds"] if storage.exists(timing) else "-"
        lines.append(f"{step:<12}{seconds:>8}  {folder}")
    if "evaluation" in steps:
        folder = artifacts["evaluation"].folder
        result = storage.read_json(storage.join(folder, "evaluation.json"))
        lines += ["", f"{'figure':<40}{'value':>12}  95% interval; {result['protocol']['network']}"]
        for name, value in result["figures"].items():
            low, high = result["intervals"].get(name, (None, None))
            interval = f"  {_number(low)} ... {_number(high)}" if low is not None else ""
            lines.append(f"{name:<40}{_number(value):>12}{interval}")
        names = ["samples.png", "stages.png", "reconstruction.png", "samples.npz", "evaluation.json"]
        lines += ["", *(path for name in names if storage.exists(path := storage.join(folder, name)))]
    from nvg import tracking

    lines += ["", f"compare runs:  mlflow ui --backend-store-uri {tracking.tracking_uri(config)}"]
    return "\n".join(lines)


def _number(value: object) -> str:
    if isinstance(value, list):
        return " ".join(_number(item) for item in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
