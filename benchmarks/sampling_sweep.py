"""Which sampling settings are best? The figures of the shipped model under several, as a Markdown table.

    python -m benchmarks.sampling_sweep [--sampler fashion-mnist] [--samples 1500] [--threads 2]
    python -m benchmarks.sampling_sweep --settings flow_steps=25,structure_temperature=0.5 flow_steps=1

--sampler must have the shipped model's classes. Figures are those of the classifier and the reference that ship with
fashion-mnist, with seeds 0, 1, ... under every setting.
"""

from __future__ import annotations

import argparse
from datetime import date
from typing import Any

import torch

from nvg.artifacts.models import load_sampler, sampler_folder
from nvg.evaluation import metrics
from nvg.evaluation.features import NetworkFile
from nvg.evaluation.reference import load_reference

BATCH = 250
COLUMNS = ("flow_steps", "flow_shift", "structure_guidance", "content_guidance", "top_p", "structure_temperature")
SETTINGS = [
    (2, 0.5, 2.5, 3.5, 0.5, 0.1),
    (1, 0.5, 2.5, 3.5, 0.5, 0.1),
    (8, 0.5, 2.5, 3.5, 0.5, 0.1),
    (2, 0.5, 2.5, 3.5, 0.5, 0.5),
    (2, 0.5, 2.5, 3.5, 0.5, 1.0),
    (8, 0.5, 2.5, 3.5, 0.5, 1.0),
    (2, 0.5, 1.5, 3.5, 0.5, 1.0),
    (2, 0.5, 2.5, 4.5, 0.5, 1.0),
    (2, 0.5, 2.5, 2.0, 0.5, 0.1),
    (2, 0.5, 1.0, 1.0, 1.0, 0.1),
]


def read_setting(text: str) -> tuple[str, Any]:
    """Read name=value of one of COLUMNS. Ends the program for another name."""
    name, _, value = text.partition("=")
    if name not in COLUMNS:
        raise SystemExit(f"error: --settings: no setting {name!r}; choose from {', '.join(COLUMNS)}")
    return name, int(value) if name == "flow_steps" else float(value)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sampler", default="fashion-mnist")
    parser.add_argument("--samples", type=int, default=1500)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--settings", nargs="+", help="name=value,name=value per row; the sampler's own for others")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    folder = sampler_folder("fashion-mnist")
    sampler = load_sampler(sampler_folder(arguments.sampler))
    network = NetworkFile("classifier", f"{folder}/classifier.safetensors").load()
    reference = load_reference(f"{folder}/reference.safetensors")
    labels = [number % len(sampler.class_names) for number in range(arguments.samples)]
    print(f"{arguments.sampler}, {arguments.samples} samples each, {date.today()}\n")
    heads = (*COLUMNS, "Fréchet distance", "accuracy", "recall")
    print("| " + " | ".join(heads) + " |\n" + "| --- " * len(heads) + "|")
    rows: list[dict[str, Any]] = [dict(zip(COLUMNS, values, strict=True)) for values in SETTINGS]
    if arguments.settings:
        default = {name: getattr(sampler.settings, name) for name in COLUMNS}
        rows = [default | dict(read_setting(item) for item in text.split(",")) for text in arguments.settings]
    for settings in rows:
        images = [
            torch.from_numpy(sampler.generate(labels[first : first + BATCH], seed=first, **settings))
            for first in range(0, len(labels), BATCH)
        ]
        features, logits = network(torch.cat(images))
        distance = metrics.frechet(features, reference.moments, replicates=50)
        right = int((logits.argmax(dim=1) == torch.tensor(labels)).sum())
        _, recall = metrics.precision_and_recall(features, reference.features)
        cells = [str(value) for value in settings.values()]
        cells += [f"{distance.value:.3f} [{distance.low:.3f}, {distance.high:.3f}]"]
        cells += [f"{right / len(labels):.3f}", f"{recall.value:.3f}"]
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
