"""Quality over training: Fréchet distance, accuracy and recall of the averaged weights of saved checkpoints.

    python -m scripts.release.training_curve CHECKPOINTS --sampler fashion-mnist [--samples 1000] \\
        [--out curve.png]

CHECKPOINTS holds step-*/ of a training of both generators. A training keeps its last two alone: copy them while it
runs, `while sleep 10; do cp -rn OUTPUT/generators-KEY/checkpoints-content-structure/step-* CHECKPOINTS/; done`.
Tokenizer, classifier and reference are those of the sampler, one that scripts/release/package_sampler.py made.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from nvg.artifacts.models import load_sampler, sampler_folder
from nvg.evaluation import metrics
from nvg.evaluation.features import NetworkFile
from nvg.evaluation.reference import load_reference


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", type=Path)
    parser.add_argument("--sampler", default="fashion-mnist")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=Path("curve.png"))
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    folder = sampler_folder(arguments.sampler)
    sampler = load_sampler(folder)
    classifier = NetworkFile("classifier", f"{folder}/classifier.safetensors").load()
    reference = load_reference(f"{folder}/reference.safetensors")
    labels = [number % len(sampler.class_names) for number in range(arguments.samples)]
    rows = []
    for path in sorted(arguments.checkpoints.glob("step-*")):
        state = load_file(path / "ema.safetensors")
        for name, network in (("content", sampler.content), ("structure", sampler.structure)):
            prefix = f"{name}."
            network.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
        features, logits = classifier(torch.from_numpy(sampler.generate(labels, seed=0)))
        accuracy = float((logits.argmax(dim=1) == torch.tensor(labels)).float().mean())
        _, recall = metrics.precision_and_recall(features, reference.features)
        distance = metrics.frechet(features, reference.moments, replicates=50)
        rows.append((int(path.name[5:]), distance.value, distance.low, distance.high, accuracy, recall.value))
        print(json.dumps(dict(zip(("step", "frechet", "low", "high", "accuracy", "recall"), rows[-1], strict=True))))
    plot(rows, arguments.samples, arguments.out)


def plot(rows: list[tuple[int, float, float, float, float, float]], samples: int, out: Path) -> None:
    """Distance with its interval above, accuracy and recall below."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    steps, value, low, high, accuracy, recall = zip(*rows, strict=True)
    figure, (above, below) = pyplot.subplots(2, 1, figsize=(7, 5), sharex=True, layout="constrained")
    above.plot(steps, value, color="#1f5fa8", marker="o")
    above.fill_between(steps, low, high, color="#1f5fa8", alpha=0.2)
    above.set_ylabel("Fréchet distance")
    above.set_yscale("log")
    above.set_title(f"{samples} samples of the averaged weights")
    below.plot(steps, accuracy, color="#c4561a", marker="o", label="classifier accuracy")
    below.plot(steps, recall, color="#4c8a2f", marker="o", label="recall")
    below.set_ylim(0, 1)
    below.set_xlabel("steps of the generators")
    below.legend(frameon=False)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    main()
