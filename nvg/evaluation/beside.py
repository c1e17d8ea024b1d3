"""Figures of a training that is still going on: a few samples of a sampler that it has left for evaluation."""

from __future__ import annotations

import copy
import math
import tempfile
from pathlib import Path

from nvg import storage, tracking
from nvg.artifacts.models import model_config, read_metadata
from nvg.config import Config
from nvg.evaluation.evaluation import Evaluation
from nvg.evaluation.metrics import Figure

FIGURES = ("frechet_distance", "accuracy_on_samples", "precision", "recall")


def evaluate_beside(config: Config, sampler_folder: str, *, samples: int) -> dict[str, float]:
    """Evaluate a sampler that a training has left, on the running Ray: its figures go into the training's run as
    curves `evaluation/...` at the sampler's step, and its folder is removed. Returns the figures.

    sampler_folder: path or URL; its metadata.json names run and step. samples: how many, at least one a class.
    """
    metadata = read_metadata(sampler_folder)
    config = copy.deepcopy(config)
    config.sampler = model_config(sampler_folder).sampler  # a distilled one takes other steps than its teacher
    settings = config.evaluate
    settings.samples_per_class = math.ceil(samples / len(metadata["class_names"]))
    settings.reconstructions, settings.train_distance, settings.save_samples = 0, False, False
    settings.given = settings.dinov2_weights = None
    with tempfile.TemporaryDirectory() as scratch:
        figures = Evaluation(config, sampler_folder, Path(scratch)).run().figures
    curves = {
        f"evaluation/{name}": figure.value
        for name, figure in figures.items()
        if name in FIGURES and isinstance(figure, Figure)
    }
    tracking.add_points(config, metadata["run_id"], curves, metadata["step"])
    storage.remove(sampler_folder)
    return curves
