"""Pictures that show what the method does, from a trained sampler, into docs/figures and into MLflow.

    python -m scripts.release.teaching_pictures granularity   a real image's structure maps and previews, all stages
    python -m scripts.release.teaching_pictures drawing       a drawn stage-1 structure with several classes
    python -m scripts.release.teaching_pictures transfer      the structure of one image with other classes
    python -m scripts.release.teaching_pictures variation     keep the first stages of an image, generate the rest
    python -m scripts.release.teaching_pictures all

--sampler takes what nvg.load takes; real images are the held-out ones that its configuration names.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import nvg
from nvg import tracking
from nvg.artifacts.models import model_config, sampler_folder
from nvg.config import Config
from nvg.data import open_source
from nvg.data.images import to_float
from nvg.data.stream import read_pieces
from nvg.generator import Sampler
from nvg.generator.batches import to_pixels
from nvg.generator.controls import Given, given_from_drawing, given_from_sequence
from nvg.granularity import GranularitySequence
from nvg.pictures import STAGE_SIDES, TileRow, compose, map_tile, stages_picture, tile

ROOT = Path(__file__).resolve().parents[2]
CLASSES = 6  # rows or columns of a picture, at most
SEEDS = 6  # samples beside each other


def some_classes(sampler: Sampler) -> list[int]:
    """Evenly spaced classes."""
    count = len(sampler.class_names)
    return np.linspace(0, count - 1, min(CLASSES, count)).round().astype(int).tolist()


def real_images(config: Config, classes: list[int], number: int = 0) -> np.ndarray:
    """One held-out image of each class, the `number`-th in reading order: uint8 (N, H, W, C)."""
    source = open_source(config.data, "test" if config.data.test is not None else "train")
    by_class: dict[int, list[np.ndarray]] = {label: [] for label in classes}
    pieces = itertools.chain.from_iterable(read_pieces(source, unit, config.data, 0, 0) for unit in source.units)
    for piece in pieces:
        for image, label in zip(piece.images, piece.labels, strict=True):
            if label in by_class:
                by_class[label].append(image)
        if all(len(images) > number for images in by_class.values()):
            return np.stack([images[number] for images in by_class.values()])
    raise SystemExit(f"error: fewer than {number + 1} held-out images of some class")


def tiles(images: np.ndarray) -> list[Image.Image]:
    """Images, uint8 (N, H, W, C), as tiles of one size."""
    colour = np.repeat(images, 3, axis=3) if images.shape[3] == 1 else images
    return [tile(image, STAGE_SIDES) for image in colour]


def structure_tile(codes: torch.Tensor, stage: int, like: Image.Image) -> Image.Image:
    """A structure map, codes (L,), as a tile."""
    return map_tile(codes.numpy(), stage, like.size)


# ---- the four pictures ----


def granularity(sampler: Sampler, config: Config) -> Image.Image:
    """Structure maps and previews of real images."""
    classes = some_classes(sampler)
    images = real_images(config, classes)
    sequence = sampler.tokenizer.encode(to_float(images))
    stages = range(1, sampler.last_stage + 2)
    previews = [to_pixels(sampler.tokenizer.decode(sequence, count)) for count in stages]
    return stages_picture(sequence.codes, previews, classes, sampler.class_names)


def drawings(side: int = 64) -> dict[str, torch.Tensor]:
    """Binary maps (side, side), each of about half the area."""
    y, x = torch.meshgrid(torch.linspace(0, 1, side), torch.linspace(0, 1, side), indexing="ij")
    return {
        "circle left": ((x - 0.32) ** 2 + (y - 0.5) ** 2 < 0.31**2).float(),
        "circle right": ((x - 0.68) ** 2 + (y - 0.5) ** 2 < 0.31**2).float(),
        "rectangle": ((x - 0.5).abs() < 0.25).float(),
    }


def drawing(sampler: Sampler, config: Config) -> Image.Image:
    """Drawn stage-1 structure by class: the drawing, the map it becomes, samples."""
    classes = some_classes(sampler)
    names = [sampler.class_names[label] for label in classes]
    rows: list[TileRow] = []
    for name, drawn in drawings().items():
        given = given_from_drawing(drawn[None], sampler.tokenizer.config.grid)
        images = tiles(sampler.generate(classes, seed=0, given=given))
        side = images[0].size
        ink = Image.fromarray((255 - drawn.numpy() * 255).astype(np.uint8)).convert("RGB").resize(side)
        row = [ink, structure_tile(given.codes[0], 1, images[0]), *images]
        rows.append(TileRow(row, name, note=f"{int(given.moved[0])} moved", begins_block=bool(rows)))
    return compose(rows, [("drawn", ""), ("stage 1", "2 tokens"), *((name, "") for name in names)])


def transfer(sampler: Sampler, config: Config) -> Image.Image:
    """All structure maps of a real image, the content of another class."""
    classes = some_classes(sampler)
    names = [sampler.class_names[label] for label in classes]
    images = real_images(config, classes)
    sequence = sampler.tokenizer.encode(to_float(images))
    rows: list[TileRow] = []
    for number, name in enumerate(names):
        given = one(sequence, number, structure_stages=sampler.last_stage)
        made = tiles(sampler.generate(classes, seed=0, given=given))
        row = [*tiles(images[number : number + 1]), structure_tile(given.codes[0], 2, made[0]), *made]
        rows.append(TileRow(row, name, begins_block=bool(rows)))
    return compose(rows, [("structure of", ""), ("stage 2", ""), *((name, "") for name in names)])


def variation(sampler: Sampler, config: Config) -> Image.Image:
    """Keep stages 0 ... n of a real image: its structure alone, or with its content."""
    label = some_classes(sampler)[-1]
    image = real_images(config, [label])
    sequence = sampler.tokenizer.encode(to_float(image))
    rows = [TileRow(tiles(image), sampler.class_names[label], note="the image")]
    for what in ("structure", "structure and content"):
        for kept in range(sampler.last_stage + 1):
            content = kept + 1 if what != "structure" else 0
            given = one(sequence, 0, structure_stages=kept, content_stages=content)
            made = sampler.generate([label] * SEEDS, seed=0, given=given)
            rows.append(TileRow(tiles(made), f"stages 0 ... {kept}", note=f"{what} kept", begins_block=kept == 0))
    return compose(rows)


def one(sequence: GranularitySequence, number: int, *, structure_stages: int, content_stages: int = 0) -> Given:
    """The first stages of one image of a sequence."""
    some = sequence[slice(number, number + 1)]
    return given_from_sequence(some, structure_stages=structure_stages, content_stages=content_stages)


PICTURES: dict[str, Callable[[Sampler, Config], Image.Image]] = {
    "granularity": granularity,
    "drawing": drawing,
    "transfer": transfer,
    "variation": variation,
}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", choices=[*PICTURES, "all"])
    parser.add_argument("--sampler", default="fashion-mnist", help="name, folder, URL or models:/NAME@champion")
    parser.add_argument("--out", default=str(ROOT / "docs" / "figures"))
    parser.add_argument("--output", default=str(ROOT / "runs" / "pictures"), help="where MLflow's database is")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    sampler = nvg.load(arguments.sampler)
    config = model_config(sampler_folder(arguments.sampler))
    config.output, config.tracking.uri = arguments.output, None
    run = tracking.start(config, "teaching_pictures")
    run.set_tags({"sampler": arguments.sampler})
    for name in PICTURES if arguments.picture == "all" else [arguments.picture]:
        path = Path(arguments.out) / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        PICTURES[name](sampler, config).save(path)
        run.log_artifact(path)
        print(path)
    run.end()


if __name__ == "__main__":
    main()
