"""Distil the generators into ones of fewer passes: structure in one step, guidance folded into structure and content.

    nvg distill --config conf/fashion_mnist_fast.yaml distill.steps=6000
    nvg distill --config conf/fashion_mnist_fast.yaml distill.teacher=null

docs/guides/fast_sampling.md says how. The tokenizer, and a generator that is not in distill.parts, are taken over as
they are. distill.teacher is a sampler's name, folder or URL, and needs tokens alone; without one the generators
of the configuration are distilled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nvg.config import Config
from nvg.training import jobs, ray_train
from pipelines.job import evaluation_beside, run_job


def distill_generators(
    config: Config, generators_folder: str, tokens_folder: str, output_folder: str
) -> dict[str, Any]:
    """Distil into `output_folder` (path or URL) on the running Ray, going on from its checkpoints; returns figures."""
    return ray_train.fit(
        jobs.distill_generators,
        config,
        output_folder,
        evaluate=evaluation_beside(config, config.distill),
        generators=generators_folder,
        tokens=tokens_folder,
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Distill, unless that is done already. argv: the command line without the program."""
    run_job("distilled", argv, __doc__)


if __name__ == "__main__":
    main()
