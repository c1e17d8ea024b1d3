"""Train the generators: granularity tokens -> content and structure generator, and the sampler made of them.

    python pipelines/train.py --config conf/fashion_mnist.yaml key=value ...

train.parts=[content] or [structure] trains one alone; the other is added by a second run with the same configuration.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from nvg.cluster import start_ray
from nvg.config import Config
from nvg.training import jobs, ray_train
from pipelines.command_line import parse_config
from pipelines.steps import ERRORS, already, claimed, plan, require


def train_generators(config: Config, tokenizer_folder: str, tokens_folder: str, output_folder: str) -> dict[str, Any]:
    """Train into `output_folder` (path or URL) on the running Ray, going on from its checkpoints; returns figures."""
    return ray_train.fit(
        jobs.train_generators,
        config,
        output_folder,
        tokenizer=tokenizer_folder,
        tokens=tokens_folder,
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Train the generators, unless they are there already. argv: the command line without the program."""
    arguments = sys.argv[1:] if argv is None else argv
    config = parse_config(arguments, __doc__.split("\n")[0])
    try:
        artifacts = plan(config)
        artifact = artifacts["generators"]
        if already(artifact):
            return
        tokenizer, tokens = (require(artifacts[step], arguments) for step in ("tokenizer", "tokens"))
        with claimed(artifact):
            start_ray(config.cluster)
            train_generators(config, tokenizer, tokens, artifact.folder)
    except ERRORS as error:
        sys.exit(f"error: {error}")
    print(f"generators: {artifact.folder}", flush=True)


if __name__ == "__main__":
    main()
