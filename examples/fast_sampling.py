"""Draw the same seeds with a sampler and with the one that was distilled of it, and count their passes.

python -m examples.fast_sampling --output both.png

Its guide is docs/guides/fast_sampling.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np

import nvg
from nvg.pictures import sample_grid

SAMPLERS = ["fashion-mnist", "fashion-mnist-fast"]


def passes(sampler: nvg.generator.Sampler, classes: Sequence[str]) -> tuple[np.ndarray, int]:
    """Images of the classes, uint8 (N, H, W, C), and how often a generator's network ran for them."""
    count = 0

    def counted(*_: Any) -> None:
        nonlocal count
        count += 1

    hooks = [network.register_forward_hook(counted) for network in (sampler.content, sampler.structure)]
    images = sampler.generate(classes, seed=0)
    for hook in hooks:
        hook.remove()
    return images, count


def main(argv: Sequence[str] | None = None) -> None:
    """Write the picture and print the passes. argv: the command line without the program."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", default="both.png", help="the picture to write (default both.png)")
    arguments = parser.parse_args(argv)
    drawn = []
    for name in SAMPLERS:
        sampler = nvg.load(name)
        images, count = passes(sampler, sampler.class_names)
        drawn.append(images)
        print(f"{name}: {count} passes of the generators for a batch of {len(images)} images")
    rows = np.repeat([0, 1], len(drawn[0])).tolist()
    sample_grid(np.concatenate(drawn), rows, SAMPLERS, len(drawn[0])).save(arguments.output)
    print(f"{arguments.output}: the ten classes, one row per sampler.")


if __name__ == "__main__":
    main()
