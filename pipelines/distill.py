"""Distill the structure generator into one of few steps: generators -> a sampler of one pass a stage.

    python pipelines/distill.py --config conf/fashion_mnist_hour.yaml few_step.steps=4000 key=value ...

docs/fast_sampling.md says how and what it costs. Content generator and tokenizer are taken over as they are.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from nvg.config import Config, ConfigError
from nvg.training import jobs, ray_train
from pipelines import common


def distill_structure(config: Config, generators_folder: str, tokens_folder: str, output_folder: str) -> dict[str, Any]:
    """Distill into `output_folder` (path or URL) on the running Ray, going on from its checkpoints; returns figures."""
    return ray_train.fit(
        jobs.distill_structure, config, output_folder,
        generators=generators_folder, tokens=tokens_folder,
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Distill, unless that is done already. argv: the command line without the program."""
    arguments = sys.argv[1:] if argv is None else argv
    config = common.parse_config(arguments, __doc__.split("\n")[0])
    try:
        if config.few_step.steps == 0:
            raise ConfigError("few_step.steps=0: say how many steps to train, for example few_step.steps=4000")
        artifacts = common.plan(config)
        artifact = artifacts["few_step"]
        if common.already(artifact):
            return
        generators, tokens = (common.require(artifacts[step], arguments) for step in ("generators", "tokens"))
        common.start_ray(config.cluster)
        distill_structure(config, generators, tokens, artifact.folder)
    except ray_train.FINAL as error:
        sys.exit(f"error: {error}")
    print(f"few_step: {artifact.folder}", flush=True)


if __name__ == "__main__":
    main()
