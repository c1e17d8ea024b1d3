"""Run every combination of some settings, each as `nvg run` would, and compare the results.

    nvg sweep --config conf/fashion_mnist.yaml --vary train.lr=2.4e-2,4.8e-2 seed=0,1 -- train.steps=500

Steps that combinations share are done once (artifacts have keys), and a sweep that was stopped goes on: the same
command finds its runs. MLflow shows the sweep, below it a run for each combination with its settings and the figures
of its evaluation, and below these the trainings that it started. Prints the combinations, the best one first.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from nvg import config as configuration
from nvg import storage, tracking
from nvg.config import Config
from nvg.errors import ConfigError
from pipelines import run
from pipelines.command_line import job_parser, one_line_errors, placed, read_config
from pipelines.steps import Artifact, check_evaluation, plan

SORTED_BY = "frechet_distance"


def combinations(vary: Sequence[str], overrides: Sequence[str] = ()) -> list[list[str]]:
    """Overrides of each combination: ["a=1,2", "b=x"] -> [["a=1", "b=x"], ["a=2", "b=x"]].

    overrides: those of every combination. Raises ConfigError for another form, and for a key or a
    value that is given twice.
    """
    axes: dict[str, list[str]] = {}
    fixed = {item.partition("=")[0].strip() for item in overrides}
    for item in vary:
        key, _, text = item.partition("=")
        try:
            values = configuration.parse(f"[{text}]")  # so that a value may be a list too
        except ValueError:
            values = None
        if not values:
            raise ConfigError(f"--vary {item}: write key=value,value,...")
        if key in axes or key in fixed:
            raise ConfigError(f"--vary {item}: {key} is given twice: write all its values in one --vary {key}=...")
        if repeated := [value for number, value in enumerate(values) if value in values[:number]]:
            raise ConfigError(f"--vary {item}: {repeated[0]} is given twice: write each value once")
        axes[key] = [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for value in values]
    return [list(one) for one in itertools.product(*axes.values())]


def sweep(config: Config, variants: dict[str, Config]) -> dict[str, dict[str, Any]]:
    """Run all variants; returns the figures of each. Raises ConfigError before anything is run."""
    planned = {name: (variant, plan(variant)) for name, variant in variants.items()}
    _check_different({name: artifacts for name, (_, artifacts) in planned.items()})
    folder = storage.join(config.output, f"sweep-{configuration.digest('sweep', sorted(planned))}")
    parent = tracking.start(config, "sweep", folder=folder)
    results: dict[str, dict[str, Any]] = {}
    with _ended(parent):
        for number, (name, (variant, artifacts)) in enumerate(planned.items(), start=1):
            todo = [step for step, artifact in artifacts.items() if not artifact.complete]
            left = f"to do: {', '.join(todo)}" if todo else "complete, nothing to do"
            print(f"\ncombination {number} of {len(planned)}: {name} ({left})", flush=True)
            child = tracking.start(_below(parent, variant), name, folder=folder)
            child.set_tags({step: artifact.folder for step, artifact in artifacts.items()})
            with _ended(child):
                if todo:
                    run.run_steps(_below(child, variant), artifacts, todo)
                results[name] = numbers(artifacts["evaluation"].folder)
                child.log_metrics(results[name], 0)
    return results


def _check_different(planned: Mapping[str, Mapping[str, Artifact]]) -> None:
    """Raises ConfigError where two combinations make the same artifacts: their rows would be one result twice."""
    names: dict[str, str] = {}
    for name, artifacts in planned.items():
        same = names.setdefault(artifacts["evaluation"].folder, name)
        if same != name:
            raise ConfigError(
                f"--vary: {same!r} and {name!r} make the same artifacts, so they would be one result twice: vary "
                "settings on which the result depends (docs/reference/artifacts.md lists the others), each value once"
            )


def _below(parent: tracking.Run, config: Config) -> Config:
    """The configuration whose runs MLflow shows below `parent`."""
    return dataclasses.replace(config, tracking=dataclasses.replace(config.tracking, parent=parent.id))


@contextmanager
def _ended(tracked: tracking.Run) -> Iterator[None]:
    """End a run of MLflow with the block, as failed where the block raises."""
    try:
        yield
    except BaseException:
        tracked.end("FAILED")
        raise
    tracked.end()


def numbers(evaluation_folder: str) -> dict[str, float]:
    """The figures of an evaluation that are numbers."""
    result = storage.read_json(storage.join(evaluation_folder, "evaluation.json"))
    return {key: value for key, value in result["figures"].items() if isinstance(value, int | float)}


def table(results: dict[str, dict[str, Any]]) -> str:
    """The combinations with their figures, the best first."""
    shown = [SORTED_BY, "accuracy_on_samples", "precision", "recall"]
    width = max(map(len, results))
    lines = [f"The best come first: a lower {SORTED_BY} is better, of the others a higher value.", ""]
    lines += [f"{'':<{width}}" + "".join(f"{key:>22}" for key in shown)]
    for name, figures in sorted(results.items(), key=lambda item: item[1].get(SORTED_BY, float("inf"))):
        lines.append(f"{name:<{width}}" + "".join(f"{figures.get(key, float('nan')):>22.4f}" for key in shown))
    return "\n".join(lines)


@one_line_errors()
def main(argv: Sequence[str] | None = None) -> None:
    """Run a sweep. argv: the command line without the program."""
    parser = job_parser(__doc__)
    parser.add_argument("--vary", nargs="+", required=True, metavar="key=value,...", help="the settings to combine")
    arguments = parser.parse_intermixed_args(argv)
    config = read_config(arguments)
    variants = {
        " ".join(one): placed(configuration.load(arguments.config, [*arguments.overrides, *one]))
        for one in combinations(arguments.vary, arguments.overrides)
    }
    for variant in variants.values():
        check_evaluation(variant)
    results = sweep(config, variants)
    print(f"\n{table(results)}\n\ncompare runs:  mlflow ui --backend-store-uri {tracking.tracking_uri(config)}")


if __name__ == "__main__":
    main()
