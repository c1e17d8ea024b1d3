"""How fast does this machine fetch features and write checkpoints? GB a second, for the model of training cost.

python -m benchmarks.capacity.store_rates
"""

from __future__ import annotations

import argparse
import tempfile
import time

import numpy as np
import torch
from torch import nn

from benchmarks.capacity.training_cost import CHECKPOINT_BYTES
from nvg import config as configuration
from nvg.config import Config
from nvg.data.features import CHECKSUM, checksums, with_features, write_features
from nvg.training.checkpoint import save_checkpoint
from nvg.training.ema import EMA
from nvg.training.saver import Saver

CONFIG = "conf/imagenet_d16.yaml"


def measured_fetch_gb_s(config: Config, batches: int = 4, rows: int = 64) -> float:
    """GB a second of CPU time in which a worker fetches features from the local disk (nvg/data/features.py)."""
    shape = (config.tokenizer.positions, config.repa.feature_width)
    features = np.random.default_rng(0).standard_normal((rows, *shape), np.float32).astype(np.float16)
    batch = {"part": np.zeros(rows, np.int64), "row": np.arange(rows), CHECKSUM: checksums(features)}
    with tempfile.TemporaryDirectory() as folder:
        part = f"{folder}/part.parquet"
        write_features(part, features, shape)
        start = time.process_time()
        given = sum(one["features"].nbytes for one in with_features([batch] * batches, [part], shape))
        return given / (time.process_time() - start) / 1e9


def measured_checkpoint_gb_s(parameters: int = 2**24) -> float:
    """GB a second of a checkpoint on the local disk: copies, files and checksums, no upload."""
    module = nn.Linear(2**12, parameters // 2**12, bias=False)
    optimizer = torch.optim.AdamW(module.parameters())
    module.weight.grad = torch.zeros_like(module.weight)
    optimizer.step()
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        with Saver() as saver:
            save_checkpoint(
                saver,
                folder,
                1,
                modules={"m": module},
                averages={"m": EMA(module, 0.9)},
                optimizers={"o": optimizer},
                config=configuration.load(CONFIG),
                metadata={},
            )
        return parameters * CHECKPOINT_BYTES / (time.perf_counter() - start) / 1e9


def main() -> None:
    """Print each rate of five rounds as an option of benchmarks.capacity.training_cost, sorted."""
    argparse.ArgumentParser(description=__doc__.split("\n")[0]).parse_args()
    config, rounds = configuration.load(CONFIG), 5
    for option, call in {
        "--fetch-gb-s": lambda: measured_fetch_gb_s(config),
        "--checkpoint-gb-s": measured_checkpoint_gb_s,
    }.items():
        print(option, *(f"{value:.2f}" for value in sorted(call() for _ in range(rounds))))


if __name__ == "__main__":
    main()
