"""Measure a shipped sampler on a few samples, with the classifier and the reference that ship with it.

python -m examples.evaluate --each 20

Its guide is docs/guides/evaluate.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

import nvg
from nvg.artifacts.models import sampler_folder
from nvg.evaluation import metrics
from nvg.evaluation.features import NetworkFile
from nvg.evaluation.reference import load_reference


def main(argv: Sequence[str] | None = None) -> None:
    """Print the figures. argv: the command line without the program."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--each", type=int, default=20, help="samples per class (default 20)")
    arguments = parser.parse_args(argv)
    name = "fashion-mnist-fast"
    sampler, folder = nvg.load(name), Path(sampler_folder(name))
    labels = [label for label in range(len(sampler.class_names)) for _ in range(arguments.each)]
    network = NetworkFile("classifier", str(folder / "classifier.safetensors")).load()
    features, logits = network(torch.from_numpy(sampler.generate(labels, seed=0)))
    hits = int((logits.argmax(dim=1) == torch.tensor(labels)).sum())
    accuracy = metrics.share(hits, len(labels))
    _, recall = metrics.precision_and_recall(features, load_reference(str(folder / "reference.safetensors")).features)
    for figure, text in ((accuracy, "samples are recognised as their class"), (recall, "real images are covered")):
        print(f"{figure.value:.2f} (95% interval {figure.low:.2f} ... {figure.high:.2f}): {text}")
    print(f"Of {len(labels)} samples. docs/guides/evaluate.md says how to measure 10,000.")


if __name__ == "__main__":
    main()
