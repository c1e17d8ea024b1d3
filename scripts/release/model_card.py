"""Write the card of a shipped sampler from its evaluation and metadata: nvg/assets/NAME/MODEL_CARD.md.

    python -m scripts.release.model_card fashion-mnist --commit COMMIT --machine "2 cores of an AMD EPYC, no GPU" \\
        --tokenizer runs/fashion_mnist_hour/tokenizer-KEY --evaluation runs/fashion_mnist_hour/evaluation-KEY

Leave --tokenizer out for a distilled sampler: its card names its teacher.

The evaluation is that of the packaged weights (evaluate.py --sampler fashion-mnist): its evaluation.json is copied into
the asset, and the figures are read from it, never typed.
"""

from __future__ import annotations

import argparse
from datetime import date
from pathlib import Path
from typing import Any

from nvg import storage
from nvg.config import read

ASSETS = Path(__file__).resolve().parents[2] / "nvg" / "assets"

CARD = """# {name}

Draws 32x32 grey images of the ten classes of Fashion-MNIST, in five stages on 4x4 latents. `nvg.load("{name}")`.

| | |
| --- | --- |
| data | Fashion-MNIST, the 60,000 training images, centred as they are, no flips; MIT licence, Zalando SE |
| command | `python pipelines/run.py --config conf/{command}` |
| commit | {commit} |
| machine | {machine} |
{trainings}
| date | {date} |
| weights | {megabytes:.1f} MB of float16 safetensors: tokenizer, content and structure generator |

## Figures

10,000 samples (1,000 a class) against the 10,000 test images, on features of the data set's own classifier
(`{network}`): they serve to compare runs of this project on this data and nothing else.
Sampling: {sampling}.

| figure | value | 95% interval |
| --- | --- | --- |
{rows}

Perfect generators would have the distance of the reconstructions, perfect samples that of the training images.
{neighbours}
## Use

For trying the method and as a base for tests. It draws clothes; it knows nothing else. Images are as soft as a 4x4
latent of 31 tokens lets them be: see the reconstruction figures.
"""


NEIGHBOURS = """
## Nearest training images

{samples} samples, {held_out} held-out images and their reconstructions, and the median distance to the nearest of
{training_images} training images: between features of the same classifier, and between pixels (0 ... 255, root mean
square). `nearer` is the share of the samples that are nearer than 95% of the held-out images, or of their
reconstructions, are. It is 5% where samples are as new as these.
[The nearest](../../../docs/figures/neighbours_{name}.png) stand beside their training images.

| space | samples | held-out | reconstructions | nearer than held-out | nearer than reconstructions | copies |
| --- | --- | --- | --- | --- | --- | --- |
{rows}
"""


def neighbours(name: str, result: dict[str, Any]) -> str:
    """The card's section of a neighbours.json, which scripts/release/neighbours.py wrote."""
    rows = []
    for space in ("features", "pixels"):
        part = result[space]
        cells = [_number(part["quantiles"][one]["0.5"]) for one in ("samples", "held_out", "reconstructions")]
        for one in ("held_out", "reconstructions"):
            low, high = part["nearer"][one]["interval"]
            cells.append(f"{part['nearer'][one]['share']:.1%} ({low:.1%} ... {high:.1%})")
        rows.append(f"| {space} | {' | '.join(cells)} | {part['copies']} |")
    return NEIGHBOURS.format(name=name, rows="\n".join(rows), **result)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("name")
    parser.add_argument("--commit", required=True)
    parser.add_argument("--machine", required=True)
    parser.add_argument("--tokenizer", help="the tokenizer's folder, for its time")
    parser.add_argument("--evaluation", required=True, help="the folder of the packaged sampler's evaluation")
    arguments = parser.parse_args()
    folder = ASSETS / arguments.name
    result = storage.read_json(storage.join(arguments.evaluation, "evaluation.json"))
    result["sampler"] = arguments.name  # not the path it had on the machine that measured it
    storage.write_json(str(folder / "evaluation.json"), result)
    metadata = storage.read_json(str(folder / "metadata.json"))
    command = "fashion_mnist_hour.yaml"
    if "teacher" in metadata:
        distill = read(str(folder / "config.yaml"))["distill"]
        teacher = metadata["teacher"]["folder"]
        command = "fashion_mnist_fast.yaml --until distilled"
        command += f" distill.steps={distill['steps']} distill.teacher={teacher}"
        trainings = [_training(f"distillation of `{teacher}`, {' and '.join(distill['parts'])}", metadata)]
    else:
        tokenizer = storage.read_json(storage.join(arguments.tokenizer, "metadata.json"))
        trainings = [_training("training of the tokenizer", tokenizer)]
        trainings += [_training("training of the generators", metadata)]
    rows = [
        f"| `{name}` | {_number(result['figures'][name])} | {_number(low)} ... {_number(high)} |"
        for name, (low, high) in result["intervals"].items()
    ]
    near = folder / "neighbours.json"  # scripts/release/neighbours.py
    weights = [folder / f"{network}.safetensors" for network in ("tokenizer", "content", "structure")]
    card = CARD.format(
        name=arguments.name,
        commit=arguments.commit,
        machine=arguments.machine,
        command=command,
        trainings="\n".join(trainings),
        date=date.today(),
        megabytes=sum(path.stat().st_size for path in weights) / 1e6,
        network=result["protocol"]["network"],
        sampling=", ".join(f"{key} {value}" for key, value in result["protocol"]["settings"].items()),
        rows="\n".join(rows),
        neighbours=neighbours(arguments.name, storage.read_json(str(near))) if near.is_file() else "",
    )
    (folder / "MODEL_CARD.md").write_text(card)
    print(folder / "MODEL_CARD.md")


def _training(name: str, metadata: dict[str, Any]) -> str:
    """The card's row of a training. Its seconds are those of the last process, which may have gone on from another."""
    figures = metadata["training"]
    last = f", the last {figures['steps_now']}" if figures["resumed_from"] else ""
    return f"| {name} | {figures['steps']} steps{last} in {figures['seconds'] / 60:.0f} min |"


def _number(value: float) -> str:
    return f"{value:.4g}" if abs(value) >= 0.001 else f"{value:.4f}"


if __name__ == "__main__":
    main()
