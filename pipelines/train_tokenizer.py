"""Train the tokenizer: images -> the multi-granularity quantized autoencoder.

python pipelines/train_tokenizer.py --config conf/fashion_mnist.yaml key=value ...
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from nvg.cluster import start_ray
from nvg.config import Config
from nvg.training import jobs, ray_train
from pipelines.command_line import parse_config
from pipelines.steps import ERRORS, already, claimed, plan


def train_tokenizer(config: Config, output_folder: str) -> dict[str, Any]:
    """Train into `output_folder` (path or URL) on the running Ray, going on from its checkpoints; returns figures."""
    return ray_train.fit(jobs.train_tokenizer, config, output_folder)


def main(argv: Sequence[str] | None = None) -> None:
    """Train the tokenizer, unless it is there already. argv: the command line without the program."""
    config = parse_config(argv, __doc__.split("\n")[0])
    try:
        artifact = plan(config)["tokenizer"]
        if already(artifact):
            return
        with claimed(artifact):
            start_ray(config.cluster)
            train_tokenizer(config, artifact.folder)
    except ERRORS as error:
        sys.exit(f"error: {error}")
    print(f"tokenizer: {artifact.folder}", flush=True)


if __name__ == "__main__":
    main()
