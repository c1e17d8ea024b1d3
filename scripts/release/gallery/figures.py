"""The gallery's pictures and films, each a function of a sampler and of the held-out images that they start from."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from nvg.config import DataConfig
from nvg.data import open_source
from nvg.data.images import to_float
from nvg.data.stream import read_pieces
from nvg.generator import Sampler
from nvg.generator.batches import to_pixels
from nvg.generator.controls import Given, given_from_drawing, given_from_sequence
from nvg.granularity import GranularitySequence
from nvg.pictures import STAGE_SIDES, TileRow, compose, film, map_tile, stages_film, stages_picture, tile
from nvg.sample import chosen_classes

MOST_FILM_BYTES = 300_000
SEEDS = 8  # samples beside each other


@dataclass(frozen=True)
class Choice:
    """The held-out images that the figures start from: a class, and a number among its images in reading order."""

    transfer: Sequence[tuple[str, int]]
    variation: tuple[str, int]
    edits: Sequence[tuple[str, int, str]]  # the third is the class that the image becomes
    note: str = ""  # what to know when looking at the figures

    def images(self) -> set[tuple[str, int]]:
        """All of them."""
        return {*self.transfer, self.variation, *((name, number) for name, number, _ in self.edits)}


CHOSEN = {
    "fashion-mnist": Choice(
        transfer=[("T-shirt/top", 0), ("Trouser", 1), ("Coat", 0), ("Sandal", 0), ("Shirt", 0), ("Bag", 1)],
        variation=("Ankle boot", 3),
        edits=[
            ("Sneaker", 5, "Ankle boot"),
            ("Ankle boot", 9, "Sneaker"),
            ("T-shirt/top", 0, "Dress"),
            ("T-shirt/top", 12, "Pullover"),
            ("Bag", 1, "T-shirt/top"),
        ],
        note="A map has 16 cells: it moves sleeves, heels and handles, and traces no outline. An edit works between "
        "classes that look alike. Halfway from a bag to a T-shirt, the image is neither.",
    )
}


def choice(name: str, sampler: Sampler) -> Choice:
    """What the figures of a sampler start from: chosen by eye, or else the first images of some classes."""
    if name in CHOSEN:
        return CHOSEN[name]
    names = [sampler.class_names[label] for label in chosen_classes(sampler, None)]
    edits = [(one, 0, other) for one, other in itertools.pairwise(names)]
    return Choice([(one, 0) for one in names[:6]], (names[-1], 0), edits[:4])


def held_out(data: DataConfig, class_names: Sequence[str], needed: Iterable[tuple[str, int]]) -> dict:
    """Held-out images by class and number, uint8 (H, W, C) each. Raises ValueError where a class has too few."""
    source = open_source(data, "test" if data.test is not None else "train")
    missing, found, counts = set(needed), {}, dict.fromkeys(class_names, 0)
    for piece in itertools.chain.from_iterable(read_pieces(source, unit, data, 0, 0) for unit in source.units):
        for image, label in zip(piece.images, piece.labels, strict=True):
            key = (class_names[label], counts[class_names[label]])
            counts[key[0]] += 1
            if key in missing:
                found[key] = image
                missing.remove(key)
        if not missing:
            return found
    name, number = min(missing)
    raise ValueError(f"class {name!r} has {counts[name]} held-out images, number {number} is to be shown")


@dataclass(frozen=True)
class Scene:
    """A sampler, and the images that its figures start from."""

    sampler: Sampler
    choice: Choice
    images: dict[tuple[str, int], np.ndarray]

    @property
    def classes(self) -> list[int]:
        """At most ten classes, evenly spaced."""
        return chosen_classes(self.sampler, None)

    @property
    def names(self) -> list[str]:
        """Their names."""
        return [self.sampler.class_names[label] for label in self.classes]

    def encode(self, name: str, number: int) -> tuple[Image.Image, GranularitySequence]:
        """A held-out image as a tile, and its granularity sequence."""
        image = self.images[name, number][None]
        return tiles(image)[0], self.sampler.tokenizer.encode(to_float(image))

    def draw(self, classes: Sequence[str | int], given: Given, seed: int | list[int] = 0) -> list[Image.Image]:
        """Samples as tiles, all with the given stages."""
        return tiles(self.sampler.generate(classes, seed=seed, given=given))


def tiles(images: np.ndarray) -> list[Image.Image]:
    """Images, uint8 (N, H, W, C), as tiles of one size."""
    colour = np.repeat(images, 3, axis=3) if images.shape[3] == 1 else images
    return [tile(image, STAGE_SIDES) for image in colour]


def drawings(side: int = 64) -> dict[str, torch.Tensor]:
    """Binary maps (side, side), each of about half the area."""
    y, x = torch.meshgrid(torch.linspace(0, 1, side), torch.linspace(0, 1, side), indexing="ij")
    return {
        "circle": ((x - 0.68) ** 2 + (y - 0.5) ** 2 < 0.31**2).float(),
        "pillar": ((x - 0.5).abs() < 0.25).float(),
        "slope": (x + y > 1).float(),
    }


# ---- pictures ----


def taken_apart(scene: Scene) -> bytes:
    """Structure maps and previews of held-out images."""
    keys = list(scene.choice.transfer)[:3]
    sequence = scene.sampler.tokenizer.encode(to_float(np.stack([scene.images[key] for key in keys])))
    previews = [
        to_pixels(scene.sampler.tokenizer.decode(sequence, count + 1)) for count in range(len(sequence.content))
    ]
    labels = [scene.sampler.class_index(name) for name, _ in keys]
    return png(stages_picture(sequence.codes, previews, labels, scene.sampler.class_names))


def drawing(scene: Scene) -> bytes:
    """Drawings, the maps that they become, and one image of each class."""
    rows: list[TileRow] = []
    for name, drawn in drawings().items():
        given = given_from_drawing(drawn[None], scene.sampler.tokenizer.config.grid)
        made = scene.draw(scene.classes, given)
        ink = Image.fromarray((255 - drawn.numpy() * 255).astype(np.uint8)).convert("RGB").resize(made[0].size)
        rows.append(TileRow([ink, map_tile(given.codes[0].numpy(), 1, made[0].size), *made], name))
    return png(compose(rows, [("drawn", ""), ("stage 1", ""), *((name, "") for name in scene.names)]))


def transfer(scene: Scene) -> bytes:
    """All structure maps of one image, the content of each class."""
    rows: list[TileRow] = []
    for name, number in scene.choice.transfer:
        image, sequence = scene.encode(name, number)
        given = given_from_sequence(sequence, structure_stages=scene.sampler.last_stage)
        made = scene.draw(scene.classes, given)
        rows.append(TileRow([image, map_tile(given.codes[0].numpy(), 2, image.size), *made], name))
    return png(compose(rows, [("structure of", ""), ("stage 2", ""), *((name, "") for name in scene.names)]))


def variation(scene: Scene) -> bytes:
    """Keep the first stages of an image and vary the rest: its structure alone, then its content too."""
    name, number = scene.choice.variation
    image, sequence = scene.encode(name, number)
    rows = [TileRow([image], name, note="the image")]
    for what in ("structure", "structure and content"):
        for kept in range(scene.sampler.last_stage):  # the last stage's structure leaves nothing to choose
            content = kept + 1 if what != "structure" else 0
            given = given_from_sequence(sequence, structure_stages=kept, content_stages=content)
            made = scene.draw([name] * SEEDS, given)
            stages = f"stages 0 ... {kept}" if kept else "stage 0"
            rows.append(TileRow(made, stages, note=f"{what} kept", begins_block=kept == 0))
    return png(compose(rows))


def edit(scene: Scene) -> bytes:
    """Keep ever fewer of an image's first stages, and generate the rest in another class."""
    count = scene.sampler.last_stage + 1
    kept = range(count, 0, -1)
    rows = []
    for name, number, other in scene.choice.edits:
        image, sequence = scene.encode(name, number)
        made = [
            scene.draw([other], given_from_sequence(sequence, structure_stages=stages - 1, content_stages=stages))[0]
            for stages in kept
        ]
        none = scene.draw([other], given_from_sequence(sequence, structure_stages=0))
        rows.append(TileRow([image, *made, *none], name, note=f"to {other}"))
    headings = [("image", ""), ("keep all", ""), *((f"{stages} of {count}", "") for stages in kept[1:]), ("none", "")]
    return png(compose(rows, headings))


def png(picture: Image.Image) -> bytes:
    """A picture as a PNG file."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


# ---- films ----


def classes_film(scene: Scene) -> bytes:
    """An image of each class, stage by stage."""
    return small_film(scene, None)


def drawing_film(scene: Scene) -> bytes:
    """One drawing in each class, stage by stage."""
    return small_film(
        scene, given_from_drawing(list(drawings().values())[-1][None], scene.sampler.tokenizer.config.grid)
    )


def small_film(scene: Scene, given: Given | None) -> bytes:
    """A film of as many of the classes as fit into MOST_FILM_BYTES. Raises ValueError where none does."""
    steps = list(scene.sampler.stages(scene.classes, seed=0, given=given))
    codes = steps[-1].sequence_codes
    for count in range(len(scene.classes), 0, -1):
        previews = [step.preview[:count] for step in steps]
        made = film(stages_film(codes[:count], previews, scene.classes[:count], scene.sampler.class_names))
        if len(made) <= MOST_FILM_BYTES:
            return made
    raise ValueError(f"a film of one class has {len(made)} bytes, more than {MOST_FILM_BYTES}")


FIGURES: dict[str, Callable[[Scene], bytes]] = {
    "film.webp": classes_film,
    "taken_apart.png": taken_apart,
    "transfer.png": transfer,
    "drawing.png": drawing,
    "drawing_film.webp": drawing_film,
    "variation.png": variation,
    "edit.png": edit,
}
