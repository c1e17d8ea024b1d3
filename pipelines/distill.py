"""Distil the generators into ones of fewer passes: structure in one step, guidance folded into structure and content.

    python pipelines/distill.py --config conf/fashion_mnist_hour.yaml distill.steps=6000 key=value ...
    python pipelines/distill.py --config conf/fashion_mnist_hour.yaml distill.steps=6000 distill.teacher=fashion-mnist

docs/fast_sampling.md says how and what it costs. The tokenizer, and a generator that is not in distill.parts, are taken
over as they are. With distill.teacher the sampler of that name, folder or URL is distilled: only tokens are needed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from nvg.cluster import start_ray
from nvg.config import Config
from nvg.errors import ConfigError
from nvg.training import jobs, ray_train
from pipelines.command_line import parse_config
from pipelines.steps import ERRORS, already, claimed, plan, require


def distill_generators(
    config: Config, generators_folder: str, tokens_folder: str, output_folder: str
) -> dict[str, Any]:
    """Distil into `output_folder` (path or URL) on the running Ray, going on from its checkpoints; returns figures."""
    return ray_train.fit(
        jobs.distill_generators,
        config,
        output_folder,
        generators=generators_folder,
        tokens=tokens_folder,
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Distill, unless that is done already. argv: the command line without the program."""
    arguments = sys.argv[1:] if argv is None else argv
    config = parse_config(arguments, __doc__.split("\n")[0])
    try:
        if config.distill.steps == 0:
            raise ConfigError("distill.steps=0: say how many steps to train, for example distill.steps=4000")
        artifacts = plan(config)
        artifact = artifacts["distilled"]
        if already(artifact):
            return
        generators, tokens = (require(artifacts[step], arguments) for step in ("generators", "tokens"))
        with claimed(artifact):
            start_ray(config.cluster)
            distill_generators(config, generators, tokens, artifact.folder)
    except ERRORS as error:
        sys.exit(f"error: {error}")
    print(f"distilled: {artifact.folder}", flush=True)


if __name__ == "__main__":
    main()
