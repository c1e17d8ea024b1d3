"""Train the tokenizer: images -> the multi-granularity quantized autoencoder.

    nvg train-tokenizer --config conf/fashion_mnist.yaml

A training that was stopped goes on from its last checkpoint: give the same command again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nvg.config import Config
from nvg.training import jobs, ray_train
from pipelines.job import run_job


def train_tokenizer(config: Config, output_folder: str) -> dict[str, Any]:
    """Train into `output_folder` (path or URL) on the running Ray, going on from its checkpoints; returns figures."""
    return ray_train.fit(jobs.train_tokenizer, config, output_folder)


def main(argv: Sequence[str] | None = None) -> None:
    """Train the tokenizer, unless it is there already. argv: the command line without the program."""
    run_job("tokenizer", argv, __doc__)


if __name__ == "__main__":
    main()
