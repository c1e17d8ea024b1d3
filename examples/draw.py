"""Draw a ring, and have three classes drawn into it.

python -m examples.draw --output drawn.png

Its guide is docs/guides/draw.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch

import nvg
from nvg.generator.controls import given_from_drawing
from nvg.pictures import sample_grid

CLASSES, EACH = ["Bag", "Coat", "Sneaker"], 4


def ring(size: int = 64) -> torch.Tensor:
    """A drawing: float (1, size, size), 1 where the ring is."""
    row, column = torch.meshgrid(torch.linspace(-1, 1, size), torch.linspace(-1, 1, size), indexing="ij")
    radius = (row**2 + column**2).sqrt()
    return ((radius > 0.35) & (radius < 0.85)).float()[None]


def main(argv: Sequence[str] | None = None) -> None:
    """Write the picture. argv: the command line without the program."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", default="drawn.png", help="the picture to write (default drawn.png)")
    arguments = parser.parse_args(argv)
    sampler = nvg.load("fashion-mnist")
    given = given_from_drawing(ring(), sampler.tokenizer.config.grid)  # the structure of stage 1
    names = [name for name in CLASSES for _ in range(EACH)]
    images = sampler.generate(names, seed=0, given=given)  # uint8 (12, 32, 32, 1)
    rows = [CLASSES.index(name) for name in names]
    sample_grid(images, rows, CLASSES, EACH).save(arguments.output)
    print(f"{arguments.output}: {EACH} pictures of each of {', '.join(CLASSES)}, all in one ring.")


if __name__ == "__main__":
    main()
