"""List the evaluations that MLflow has of a folder's runs, the best first.

python -m examples.track --uri sqlite:///$PWD/runs/fashion_mnist/mlflow.db

Its guide is docs/guides/track.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from mlflow import MlflowClient

FIGURES = ("frechet_distance", "accuracy_on_samples", "recall")


def main(argv: Sequence[str] | None = None) -> None:
    """Print a line per evaluation. argv: the command line without the program."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--uri", required=True, help="of MLflow: sqlite:////folder/mlflow.db, http://server:5000")
    arguments = parser.parse_args(argv)
    scheme, _, path = arguments.uri.partition(":///")
    if scheme == "sqlite" and not Path(path).exists():  # MLflow would make an empty one
        raise SystemExit(f"error: {path}: no such file: a run's last line names its database")
    client = MlflowClient(arguments.uri)
    runs = client.search_runs(
        [experiment.experiment_id for experiment in client.search_experiments()],
        filter_string="tags.job = 'evaluate' and attributes.status = 'FINISHED'",
        order_by=["metrics.frechet_distance ASC"],
    )
    if not runs:
        raise SystemExit(f"error: {arguments.uri} has no finished evaluation: run `nvg evaluate` first")
    print("".join(f"{name:<22}" for name in FIGURES) + "sampler")
    for run in runs:
        figures = (f"{run.data.metrics.get(name, float('nan')):<22.4g}" for name in FIGURES)
        print("".join(figures) + run.data.tags["sampler"])


if __name__ == "__main__":
    main()
