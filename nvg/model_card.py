"""The text of a model card: what a sampler draws, how good it is, how it was made, what its limits are.

No figure is typed: they come from evaluation.json, with the meanings and bars of nvg/evaluation/meaning.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from nvg.config import Config
from nvg.evaluation.meaning import MEANINGS, verdicts

FEW = 10  # classes that a card names
AGAIN = """\
`config.yaml` holds every setting. With the version of nvg that wrote it, one command trains it again. Put in
the paths of your images:

```bash
nvg run --config config.yaml output=runs/again data.train=TRAIN data.test=TEST
```"""


def body(
    config: Config, metadata: Mapping[str, Any], name: str, evaluation: Mapping[str, Any] | None, *, again: bool
) -> str:
    """The card of a sampler whose folder has no MODEL_CARD.md: from config.yaml, metadata.json and evaluation.json.

    again: whether config.yaml lies beside the card, with which a sampler that is not distilled can be trained again.
    """
    size, classes = config.tokenizer.image_size, metadata["class_names"]
    steps = metadata.get("training", {}).get("steps")
    made = [f"The last training took {steps:,} steps."] if steps else []
    if "teacher" in metadata:
        made.append(f"It was distilled from the sampler `{PurePosixPath(metadata['teacher']['folder']).name}`.")
    elif again:
        made.append(AGAIN)
    sections = [
        f"# {name}",
        f"Draws {size}x{size} images of {len(classes):,} classes, coarse to fine in {config.tokenizer.last_stage + 1} "
        "stages. Give it the first stages, as a drawing or from another image, and it draws the rest.",
        f"Classes: {named(classes)}.",
        *([] if evaluation is None else ["## How good it is", quality(evaluation)]),
        *(["## How it was made", *made] if made else []),
        "## Limits",
        limits(config, evaluation),
    ]
    return "\n\n".join(sections) + "\n"


def named(classes: Sequence[str]) -> str:
    """The first classes by name."""
    return ", ".join(classes[:FEW]) + (", ..." if len(classes) > FEW else "")


def quality(evaluation: Mapping[str, Any]) -> str:
    """What was measured, against what, and the figures as a table: value, interval, whether it is good, meaning."""
    protocol, figures, good = evaluation["protocol"], evaluation["figures"], verdicts(evaluation["figures"])
    rows = []
    for name, (low, high) in evaluation["intervals"].items():
        interval = f"{number(low)} ... {number(high)}"
        cells = (f"`{name}`", number(figures[name]), interval, good.get(name, ""), MEANINGS[name])
        rows.append("| " + " | ".join(cells) + " |")
    settings = ", ".join(f"{key} {value}" for key, value in protocol["settings"].items())
    reference = re.sub(r"\d{4,}", lambda digits: f"{int(digits[0]):,}", str(protocol["reference"]))
    own = " It is a small network of this data set: no distance on it is an FID." if is_classifier(protocol) else ""
    return f"""{protocol["samples"]:,} samples were compared with {reference}, on features of
`{protocol["network"]}`.{own}
Compare these figures with evaluations of the same protocol, and with nothing else.

| figure | value | 95% interval | good | meaning |
| --- | --- | --- | --- | --- |
{chr(10).join(rows)}

Sampling: {settings}."""


def is_classifier(protocol: Mapping[str, Any]) -> bool:
    """Whether the features are those of the classifier that this project trains on the data set."""
    return str(protocol["network"]).startswith("classifier ")


def number(value: float) -> str:
    """A figure in a table."""
    return f"{value:.4g}" if abs(value) >= 0.001 else f"{value:.4f}"


def limits(config: Config, evaluation: Mapping[str, Any] | None) -> str:
    """What the sampler does not do, as a list."""
    size, grid = config.tokenizer.image_size, config.tokenizer.grid
    figures = {} if evaluation is None else evaluation["figures"]
    lines = [f"- It draws its classes and nothing else, at {size}x{size} pixels. It reads no text."]
    detail = f"- A picture is {2 * config.tokenizer.positions - 1} content tokens on {grid}x{grid} positions"
    if "reconstruction_psnr" in figures:
        detail += f", as soft as a decoded real image ({figures['reconstruction_psnr']:.1f} dB of PSNR)"
    lines.append(f"{detail}.")
    if "recall" in figures:
        lines.append(f"- Not every real image has a sample like it: {figures['recall']:.0%} have one (recall).")
    return "\n".join(lines)
