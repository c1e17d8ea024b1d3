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

from nvg import model_card, storage
from nvg.artifacts.models import model_config
from nvg.config import read

ASSETS = Path(__file__).resolve().parents[2] / "nvg" / "assets"

CARD = """# {name}

Draws 32x32 grey pictures of ten kinds of clothes, coarse to fine in {stages} stages. Give it the first stages, as a
drawing or from another picture, and it draws the rest. It ships with nvg:

```python
import nvg

sampler = nvg.load("{name}")
images = sampler.generate(["Bag", "Coat"], seed=0)  # uint8 (2, 32, 32, 1)
```

Classes: {classes}.

## How good it is

{quality}

## How it was made

| | |
| --- | --- |
| command | `python pipelines/run.py --config conf/{command}` |
{rows}
{neighbours}
## Limits

{limits}
- Pictures are centred and grey, as those of the data set. Use it to try the method and as a base for tests.
"""
DATA = "Fashion-MNIST, its 60,000 training images, no flips; MIT licence, Zalando SE"


def card(name: str, result: dict[str, Any], rows: dict[str, str]) -> str:
    """The card of a shipped sampler. result: its evaluation.json. rows: how it was made, but for the command."""
    folder = str(ASSETS / name)
    metadata, config = storage.read_json(storage.join(folder, "metadata.json")), model_config(folder)
    command = "fashion_mnist_hour.yaml"
    if "teacher" in metadata:
        distill = read(storage.join(folder, "config.yaml"))["distill"]
        command = "fashion_mnist_fast.yaml --until distilled"
        command += f" distill.steps={distill['steps']} distill.teacher={metadata['teacher']['folder']}"
    near = storage.join(folder, "neighbours.json")  # scripts/release/neighbours.py
    return CARD.format(
        name=name,
        stages=config.tokenizer.last_stage + 1,
        classes=model_card.named(metadata["class_names"]),
        quality=model_card.quality(result),
        command=command,
        rows="\n".join(f"| {key} | {value} |" for key, value in rows.items()),
        neighbours=neighbours(name, storage.read_json(near)) if storage.exists(near) else "",
        limits=model_card.limits(config, result),
    )


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
        cells = [model_card.number(part["quantiles"][one]["0.5"]) for one in ("samples", "held_out", "reconstructions")]
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
    if "teacher" in metadata:
        parts = " and ".join(read(str(folder / "config.yaml"))["distill"]["parts"])
        trainings = {f"distillation of `{metadata['teacher']['folder']}`, {parts}": _training(metadata)}
    else:
        tokenizer = storage.read_json(storage.join(arguments.tokenizer, "metadata.json"))
        trainings = {"training of the tokenizer": _training(tokenizer)}
        trainings |= {"training of the generators": _training(metadata)}
    weights = [folder / f"{network}.safetensors" for network in ("tokenizer", "content", "structure")]
    megabytes = sum(path.stat().st_size for path in weights) / 1e6
    rows = {
        "data": DATA,
        **trainings,
        "machine": arguments.machine,
        "commit": arguments.commit,
        "date": str(date.today()),
        "weights": f"{megabytes:.1f} MB of float16 safetensors: tokenizer, content and structure generator",
        "licence": metadata["licence"],
    }
    text = card(arguments.name, result, rows)
    (folder / "MODEL_CARD.md").write_text(text)
    print(folder / "MODEL_CARD.md")


def _training(metadata: dict[str, Any]) -> str:
    """Steps and minutes of a training. Its seconds are those of the last process, which may have gone on from
    another."""
    figures = metadata["training"]
    last = f", the last {figures['steps_now']}" if figures["resumed_from"] else ""
    return f"{figures['steps']} steps{last} in {figures['seconds'] / 60:.0f} min"


if __name__ == "__main__":
    main()
