"""The nearest training images of a packaged sampler's samples: for its card, and a picture.

    python -m scripts.release.neighbours fashion-mnist --samples 200 --held-out 1000

writes neighbours.json into the sampler's folder and neighbours_NAME.png into docs/figures. Images are those that the
sampler's configuration names, features those of the classifier that scripts/release/package_sampler.py put beside it.
Training images are compared as they are: a copy that is shifted or mirrored, as data.views makes them, is near in
features alone. scripts/release/model_card.py writes the result into the card.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import nvg
from nvg import storage
from nvg.artifacts.models import model_config, sampler_folder
from nvg.config import DataConfig
from nvg.data import open_source
from nvg.data.images import to_float
from nvg.data.stream import read_pieces
from nvg.errors import DataError
from nvg.evaluation.features import FeatureNetwork, NetworkFile
from nvg.evaluation.neighbours import SPACES, Images, Nearest, picture, summary
from nvg.generator import Sampler
from nvg.generator.batches import to_pixels
from pipelines.command_line import one_line_errors

ROOT = Path(__file__).resolve().parents[2]
BATCH = 50  # images drawn at once
NEIGHBOURS = 3  # of each sample, shown


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, write and say. argv: the command line without the program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="a sampler that ships, or a folder that package_sampler made")
    parser.add_argument("--samples", type=int, default=200, help="images to draw, over all classes (default 200)")
    parser.add_argument("--held-out", type=int, default=1000, help="held-out images to compare with (default 1000)")
    parser.add_argument("--seed", type=int, default=0, help="of the first sample (default 0)")
    parser.add_argument("--figures", type=Path, default=ROOT / "docs" / "figures", help="the folder of the picture")
    arguments = parser.parse_args(argv)
    with one_line_errors(ValueError, OSError):
        folder = sampler_folder(arguments.name)
        network = NetworkFile("classifier", storage.join(folder, "classifier.safetensors"))
        counts = {"samples": arguments.samples, "held_out": arguments.held_out, "seed": arguments.seed}
        result, shown = measure(nvg.load(folder), model_config(folder).data, network.load(), **counts)
        path = arguments.figures / f"neighbours_{Path(folder).name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        shown.save(path)
        storage.write_json(storage.join(folder, "neighbours.json"), {"network": network.name} | result)
    print(storage.join(folder, "neighbours.json"), path, sep="\n")


def measure(
    sampler: Sampler, data: DataConfig, network: FeatureNetwork, *, samples: int, held_out: int, seed: int
) -> tuple[dict[str, Any], Image.Image]:
    """The content of neighbours.json, and the picture. Raises DataError without held-out images."""
    if data.test is None:
        raise DataError("data.test is not set: how near held-out images are to training images is the yardstick")
    labels = [number % len(sampler.class_names) for number in range(samples)]
    drawn = in_both_spaces(network, draw(sampler, labels, seed))
    real = in_both_spaces(network, first(images(data, "test"), held_out))
    decoded = in_both_spaces(network, reconstructed(sampler, real.pixels))
    found = {
        "samples": {space: Nearest(drawn, space, NEIGHBOURS, keep=True) for space in SPACES},
        "held_out": {space: Nearest(real, space) for space in SPACES},
        "reconstructions": {space: Nearest(decoded, space) for space in SPACES},
    }
    count = 0
    for piece in images(data, "train"):
        training = in_both_spaces(network, piece)
        count += len(piece)
        for nearest in found.values():
            for some in nearest.values():
                some.add(training)
    result: dict[str, Any] = {"samples": samples, "seed": seed, "training_images": count, "held_out": len(real.pixels)}
    for space in SPACES:
        result[space] = summary({name: nearest[space].distances[:, 0] for name, nearest in found.items()})
    return result, picture(drawn, found["samples"], labels, sampler.class_names)


def first(pieces: Iterator[np.ndarray], count: int) -> np.ndarray:
    """The first images of a stream, at most `count`."""
    some: list[np.ndarray] = []
    for piece in pieces:
        some.append(piece)
        if sum(map(len, some)) >= count:
            break
    return np.concatenate(some)[:count]


def images(data: DataConfig, split: str) -> Iterator[np.ndarray]:
    """A split's images, the centre of each, some at a time: uint8 (n, H, W, C)."""
    source = open_source(data, split)
    for unit in source.units:
        for piece in read_pieces(source, unit, data, 0, 0):
            if len(piece.images):
                yield piece.images


def in_both_spaces(network: FeatureNetwork, pixels: np.ndarray) -> Images:
    """Images with their features."""
    tensor = torch.from_numpy(np.ascontiguousarray(pixels))
    return Images(tensor, network(tensor)[0])


def draw(sampler: Sampler, labels: list[int], seed: int) -> np.ndarray:
    """Samples, uint8 (N, H, W, C); the j-th has the seed `seed` + j."""
    starts = range(0, len(labels), BATCH)
    return np.concatenate([sampler.generate(labels[at : at + BATCH], seed=seed + at) for at in starts])


@torch.inference_mode()
def reconstructed(sampler: Sampler, pixels: torch.Tensor) -> np.ndarray:
    """Images, uint8 (N, H, W, C), encoded and decoded."""
    tokenizer = sampler.tokenizer
    return np.concatenate(
        [to_pixels(tokenizer.decode(tokenizer.encode(to_float(some)))) for some in pixels.split(BATCH)]
    )


if __name__ == "__main__":
    main()
