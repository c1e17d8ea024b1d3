"""Train the generators: granularity tokens -> content and structure generator, and the sampler made of them.

    python pipelines/train.py --config conf/fashion_mnist.yaml key=value ...

train.parts=[content] or [structure] trains one alone; the other is added by a second run with the same configuration.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from nvg.config import Config
from nvg.training import jobs, ray_train
from pipelines import common


def train_generators(config: Config, tokenizer_folder: str, tokens_folder: str, output_folder: str) -> dict[str, Any]:
    """Train into `output_folder` (path or URL) on the running Ray, going on from its checkpoints; returns figures."""
    return ray_train.fit(
        jobs.train_generators, config, output_folder,
        tokenizer=tokenizer_folder, tokens=tokens_folder,
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Train the generators, unless they are there already. argv: the command line without the program."""
    arguments = sys.argv[1:] if argv is None else argv
    config = common.parse_config(arguments, __doc__.split("\n")[0])
    try:
        artifacts = common.plan(config)
        artifact = artifacts["generators"]
        if common.already(artifact):
            return
        tokenizer, tokens = (common.require(artifacts[step], arguments) for step in ("tokenizer", "tokens"))
        with common.claimed(artifact):
            common.start_ray(config.cluster)
            train_generators(config, tokenizer, tokens, artifact.folder)
    except common.ERRORS as error:
        sys.exit(f"error: {error}")
    print(f"generators: {artifact.folder}", flush=True)


if __name__ == "__main__":
    main()
