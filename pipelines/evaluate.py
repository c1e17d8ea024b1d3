"""Measure a trained sampler: distances to real images, a classifier's verdict, reconstructions, sample grids.

    nvg evaluate --config conf/fashion_mnist.yaml
    nvg evaluate --config conf/eval/imagenet_fid50k.yaml --sampler s3://BUCKET/generators-KEY
    nvg evaluate --config conf/fashion_mnist.yaml --given other:3

The first form measures the sampler that train.py made with this configuration. With --sampler it is any other one, by
name, folder or URL: the configuration then only changes the settings that the sampler was trained with. --given KIND is
evaluate.given=KIND: the samples' structure is given, in part or whole, and not generated (docs/guides/evaluate.md).
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nvg import config as configuration
from nvg import storage, tracking
from nvg.artifacts.models import is_shipped, model_settings, read_metadata, sampler_folder
from nvg.cluster import start_ray
from nvg.config import Config
from nvg.console import say
from nvg.evaluation.evaluation import SAMPLES_FILE, Evaluated, Evaluation
from nvg.evaluation.metrics import Figure
from pipelines.command_line import job_parser, one_line_errors, placed, read_config, remark, words
from pipelines.figures import figures_of
from pipelines.job import already, make_artifact
from pipelines.steps import Artifact, as_drawn, check_evaluation, claimed, file_fingerprints, plan, split_fingerprints

RESULT = "evaluation.json"


def evaluate(config: Config, sampler_folder: str, output_folder: str) -> dict[str, Any]:
    """Evaluate the sampler of a folder (path or URL) on the running Ray; returns the content of evaluation.json.

    `output_folder` gets samples.npz, pictures, evaluation.json and metadata.json, all or nothing. evaluation.json
    stands beside the sampler too, the latest one with nothing given, unless it ships with the package. MLflow gets all
    but samples.npz.
    """
    start = time.time()
    with storage.folder_writer(output_folder) as folder:
        evaluated = Evaluation(config, sampler_folder, folder).run()
        result = content(evaluated, config, sampler_folder, seconds=time.time() - start)
        storage.write_json(str(folder / RESULT), result)
        run = _track(config, sampler_folder, output_folder, result, folder)
        storage.write_json(str(folder / storage.LAST_FILE), {"kind": "evaluation", "run_id": run})
    # A shipped sampler's evaluation.json is what its card says, whoever tries it.
    if config.evaluate.given is None and not is_shipped(sampler_folder):
        try:
            storage.write_json(storage.join(sampler_folder, RESULT), result)
        except OSError as error:  # a sampler that others own, for reading alone
            say(f"evaluation: not written beside the sampler: {error}")
    say(summary(result, output_folder))
    return result


def content(evaluated: Evaluated, config: Config, sampler_folder: str, *, seconds: float) -> dict[str, Any]:
    """The content of evaluation.json."""
    intervals = {name: value for name, value in evaluated.figures.items() if isinstance(value, Figure)}
    return {
        "figures": evaluated.figures | {name: figure.value for name, figure in intervals.items()},
        "intervals": {name: [figure.low, figure.high] for name, figure in intervals.items()},
        "protocol": evaluated.protocol,
        "sampler": sampler_folder,
        "evaluate": dataclasses.asdict(config.evaluate),
        "seconds": round(seconds, 1),
    }


def _track(config: Config, sampler: str, output: str, result: dict[str, Any], folder: Path) -> str:
    """Log everything but samples.npz, which is too large for a tracking server; returns the run's id."""
    run = tracking.start(config, "evaluate", folder=output)
    run.set_tags({"artifact": output, "sampler": sampler, "network": result["protocol"]["network"]})
    if config.evaluate.given is not None:
        run.set_tags({"given": config.evaluate.given})
    numbers = {name: value for name, value in result["figures"].items() if isinstance(value, int | float)}
    for name, (low, high) in result["intervals"].items():
        numbers |= {f"{name}/low": low, f"{name}/high": high}
    run.log_metrics(numbers, 0)
    for path in sorted(folder.iterdir()):
        if path.name != SAMPLES_FILE:
            run.log_artifact(path)
    run.end()
    return run.id


def summary(result: dict[str, Any], folder: str) -> str:
    """One line on a finished evaluation."""
    figures, protocol = result["figures"], result["protocol"]
    low, high = result["intervals"]["frechet_distance"]
    given = "" if protocol["given"] is None else f" with {protocol['given']} given"
    text = (
        f"evaluation{given}: Fréchet distance {figures['frechet_distance']:.3g} [{low:.3g}, {high:.3g}] of "
        f"{figures['samples']} samples to {protocol['reference']} ({protocol['network']})"
    )
    if "frechet_distance_dinov2" in figures:
        low, high = result["intervals"]["frechet_distance_dinov2"]
        text += f", on DINOv2 {figures['frechet_distance_dinov2']:.3g} [{low:.3g}, {high:.3g}]"
    if "accuracy_on_samples" in figures:
        text += f", classifier accuracy {figures['accuracy_on_samples']:.3f}"
    if "reconstruction_mse" in figures:
        text += f", reconstruction MSE {figures['reconstruction_mse']:.4f}"
    return f"{text}, {result['seconds']} s, {folder}"


def evaluate_trained(config: Config, sampler_folder: str, output_folder: str) -> dict[str, Any]:
    """`evaluate` of the sampler that this configuration trains, or distils into one with flow steps of its own."""
    return evaluate(as_drawn(config), sampler_folder, output_folder)


def evaluation_of(config: Config, sampler_folder: str) -> Artifact:
    """Where the evaluation of any sampler is kept: its key has the sampler, the settings and all that measures it."""
    measured_by = [value for name, value in file_fingerprints(config).items() if name.startswith("evaluate.")]
    inputs = (*split_fingerprints(config), *measured_by)
    key = configuration.digest(read_metadata(sampler_folder), config.evaluate, config.sampler, config.data, *inputs)
    return Artifact("evaluation", key, storage.join(config.output, f"evaluation-{key}"))


def evaluate_any(arguments: argparse.Namespace) -> str:
    """Measure the sampler of --sampler, unless that is done already; returns the evaluation's folder. Raises the errors
    of `make_artifact`."""
    folder = sampler_folder(arguments.sampler)
    settings = configuration.merged(model_settings(folder), configuration.read(arguments.config))
    config = placed(configuration.from_dict(settings, arguments.overrides, where=arguments.config))
    remark(config)
    evaluation = evaluation_of(config, folder)
    if not already(evaluation):
        check_evaluation(config)
        with claimed(evaluation):
            start_ray(config.cluster)
            evaluate(config, folder, evaluation.folder)
    return evaluation.folder


@one_line_errors()
def main(argv: Sequence[str] | None = None) -> None:
    """Measure a finished sampler, unless that is done already. argv: the command line without the program."""
    parser = job_parser(__doc__)
    parser.add_argument("--sampler", help="any sampler, by name, folder or URL (default: the one that --config trains)")
    parser.add_argument(
        "--given",
        metavar="KIND",
        help="structure to give to every sample: own:STAGE, other:STAGE, drawn or noisy:SHARE",
    )
    arguments = parser.parse_intermixed_args(words(argv))
    if arguments.given is not None:
        arguments.overrides.append(f"evaluate.given={arguments.given}")
    if arguments.sampler is None:
        config = read_config(arguments)
        make_artifact("evaluation", config, ["--config", arguments.config, *arguments.overrides])
        folder = plan(config)["evaluation"].folder
    else:
        folder = evaluate_any(arguments)
    print("\n".join(("", *figures_of(folder))))


if __name__ == "__main__":
    main()
