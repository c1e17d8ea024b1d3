"""The text of docs/gallery.md."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping

from nvg.artifacts.models import ASSETS
from nvg.generator import Sampler
from nvg.sample import chosen_classes
from scripts.release.gallery.figures import FIGURES, choice

HEAD = """\
# Gallery

<!-- Made by python -m scripts.release.gallery. -->

See what a structure decides, and what the content adds. To draw these pictures again, run:

```bash
python -m scripts.release.gallery --sampler {samplers}
```

We chose the examples by eye. Draw others with [`nvg sample`](reference/cli.md#nvg-sample) or in the
[studio](guides/draw.md#in-the-studio). To measure how well content follows a structure, see
[Evaluate](guides/evaluate.md#give-the-structure).
"""

SIZES = "{size}x{size} pixels on {grid}x{grid} latents: {stages} stages with {tokens} tokens."

TEXTS = {
    "film.webp": (
        "From coarse to fine",
        "Each stage splits the clusters of the structure map, and gives every cluster one token. The preview is "
        "decoded from the stages so far.",
    ),
    "taken_apart.png": (
        "Images taken apart",
        "The tokenizer takes held-out images apart in the same way. The generators learn from these maps and tokens.",
    ),
    "transfer.png": (
        "One structure in {classes} classes",
        "Each row is given all structure maps of the image on its left. The content is generated for the class of the "
        "column. A column has one seed, so its images differ by their structure alone.",
    ),
    "drawing.png": (
        "One drawing in {classes} classes",
        "Each row is given a drawing as the structure of stage 1. All other stages are generated.",
    ),
    "drawing_film.webp": (
        "A drawing, stage by stage",
        "The last drawing again: stage 1 is given, and the later stages split its halves.",
    ),
    "variation.png": (
        "Keep the first stages, vary the rest",
        "Above, an image gives its first structure maps; below, their content too. Each column has another seed. The "
        "more stages you keep, the less is left to vary.",
    ),
    "edit.png": (
        "Edit an image",
        "An image gives the structure and content of its first stages. The others are generated for another class. "
        "Keep fewer stages to move further from the image.",
    ),
}


def figure_name(sampler: str, file: str) -> str:
    """The name of a figure's file in docs/figures."""
    return f"gallery_{sampler}_{file}"


def page(samplers: Mapping[str, Sampler]) -> str:
    """The page, of samplers by name."""
    return HEAD.format(samplers=" ".join(samplers)) + "".join(_section(*item) for item in samplers.items())


def _section(name: str, sampler: Sampler) -> str:
    """What is said of one sampler, and its figures."""
    tokenizer = sampler.tokenizer.config
    stages, tokens = sampler.last_stage + 1, 2 ** (sampler.last_stage + 1) - 1
    said = [SIZES.format(size=tokenizer.image_size, grid=tokenizer.grid, stages=stages, tokens=tokens)]
    if (ASSETS / name).is_dir():
        said.append(f"[Its card](../nvg/assets/{name}/MODEL_CARD.md) has its measurements.")
    said.append(choice(name, sampler).note)
    text = f"\n## {name}\n\n{_lines(' '.join(said))}\n"
    for file in FIGURES:
        title, words = TEXTS[file]
        title = title.format(classes=len(chosen_classes(sampler, None)))
        text += f"\n### {title}\n\n{_lines(words)}\n\n![{title}](figures/{figure_name(name, file)})\n"
    return text


def _lines(text: str) -> str:
    """A paragraph in lines of the docs' width, links whole."""
    return textwrap.fill(text.strip(), 120, break_on_hyphens=False, break_long_words=False)
