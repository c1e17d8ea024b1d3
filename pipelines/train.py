"""Train the generators: granularity tokens -> content and structure generator, and the sampler made of them.

    nvg train --config conf/fashion_mnist.yaml

train.parts=[content] or [structure] trains one alone; the other is added by a second run with the same configuration.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nvg.config import Config
from nvg.training import jobs, ray_train
from pipelines.job import evaluation_beside, run_job


def train_generators(config: Config, tokenizer_folder: str, tokens_folder: str, output_folder: str) -> dict[str, Any]:
    """Train into `output_folder` (path or URL) on the running Ray, going on from its checkpoints; returns figures."""
    return ray_train.fit(
        jobs.train_generators,
        config,
        output_folder,
        evaluate=evaluation_beside(config, config.train),
        tokenizer=tokenizer_folder,
        tokens=tokens_folder,
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Train the generators, unless they are there already. argv: the command line without the program."""
    run_job("generators", argv, __doc__)


if __name__ == "__main__":
    main()
