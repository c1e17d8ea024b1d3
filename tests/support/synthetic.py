"""Images to train on in seconds: a disc, a square or stripes, a class each, in random colours and places.

    python -m tests.support.synthetic runs/smoke/images

writes the images that conf/smoke.yaml reads.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("disc", "square", "stripes")


def picture(kind, size, generator):
    """One image, uint8 (size, size, 3)."""
    y, x = np.mgrid[:size, :size]
    centre = generator.uniform(0.35, 0.65, 2) * size
    radius = generator.uniform(0.2, 0.35) * size
    if kind == "disc":
        mask = (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2
    elif kind == "square":
        mask = np.maximum(abs(y - centre[0]), abs(x - centre[1])) < radius
    else:
        mask = (y + int(centre[0])) // max(2, size // 8) % 2 == 0
    back, front = generator.integers(0, 110, 3), generator.integers(145, 256, 3)
    return np.where(mask[..., None], front, back).astype(np.uint8)


def write_images(folder, each=32, size=16, seed=0):
    """A folder of PNG files, one sub-folder a class; returns its path."""
    for number, kind in enumerate(CLASSES):
        (Path(folder) / kind).mkdir(parents=True, exist_ok=True)
        for index in range(each):
            generator = np.random.default_rng([seed, number, index])
            Image.fromarray(picture(kind, size, generator)).save(Path(folder) / kind / f"{index:04d}.png")
    return str(folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", nargs="?", default="runs/smoke/images")
    print(f"wrote images to {write_images(parser.parse_args().folder)}")
