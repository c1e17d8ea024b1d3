"""Draw images with a sampler into one picture.

    nvg sample fashion-mnist --classes Bag,Coat --count 4 --seed 0 --output grid.png [key=value ...]
    nvg sample fashion-mnist --classes Bag --stages --output stages.png
    nvg sample fashion-mnist --film film.webp
    nvg sample fashion-mnist --classes Bag,Coat --structure drawing.png

The sampler is one that ships with nvg, a folder, a URL or models:/NAME@champion. Each class has a row of its own; with
--stages the rows are the structure map and the preview of every stage. --film shows these one after the other, in an
animated WebP in which each class has a column. --structure takes a drawn black and white map in place of the first one
that would be generated. key=value changes a setting, such as structure_temperature=0.5.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

import nvg
from nvg import storage
from nvg.config import SEEDS, SamplerConfig, ServeConfig, with_home
from nvg.errors import ConfigError
from nvg.generator.seeds import nth_seed
from nvg.pictures import MAXIMUM_CLASSES, film, sample_grid, stages_film, stages_picture
from pipelines.command_line import one_line_errors

if TYPE_CHECKING:
    from nvg.generator import Given, Sampler

BATCH = 16  # images drawn at once, which bounds memory; an image does not depend on the others of its batch


def main(argv: Sequence[str] | None = None) -> None:
    """Draw, write the picture and say how to read it. argv: the command line without the program."""
    arguments = _parser().parse_intermixed_args(argv)
    with one_line_errors(ValueError, OSError):  # the sampler's own, for a class or a setting; files
        settings = read_settings(arguments.settings)
        kind = "film" if arguments.film is not None else "stages" if arguments.stages else "grid"
        output = with_home(arguments.film if kind == "film" else arguments.output)
        check_name(output, kind)
        sampler = nvg.load(arguments.model)
        chosen = chosen_classes(sampler, arguments.classes)
        given = None if arguments.structure is None else read_drawing(arguments.structure, sampler)
        classes = [index for index in chosen for _ in range(arguments.count)]
        made = DRAWN[kind](sampler, classes, arguments.seed, given, settings)
        storage.write_bytes(output, made)
    print(f"{output}: {legend(len(chosen), arguments.count, arguments.seed, kind)}")
    if len(chosen) < len(sampler.class_names) and arguments.classes is None:
        print(f"These are {len(chosen)} of {len(sampler.class_names)} classes: name others with --classes.")
    if given is not None:
        print(f"The drawing is the structure of stage 1: {rebalanced(given)}.")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a sampler: a name such as fashion-mnist, a folder, a URL, models:/NAME@champion")
    parser.add_argument("--classes", metavar="A,B", help=f"names or indices (default: all, at most {MAXIMUM_CLASSES})")
    parser.add_argument("--count", type=_at_least_one, default=1, help="images per class (default 1)")
    parser.add_argument("--seed", type=_seed, default=0, help="image j has the seed SEED + j (default 0)")
    parser.add_argument("--stages", action="store_true", help="draw every stage's structure map and preview")
    parser.add_argument("--structure", metavar="FILE", help="a drawing, black and white or with alpha, as stage 1")
    files = parser.add_mutually_exclusive_group()
    files.add_argument("--output", default="sample.png", help="the PNG to write, a path or URL (default sample.png)")
    files.add_argument("--film", metavar="FILE", help="write the stages as an animated WebP, a path or URL, and no PNG")
    names = ", ".join(field.name for field in dataclasses.fields(SamplerConfig))
    parser.add_argument("settings", nargs="*", metavar="key=value", help=f"over the sampler's settings: {names}")
    return parser


def _at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no whole number of at least 1")
    return int(text)


def _seed(text: str) -> int:
    """As over HTTP: larger ones would repeat the pictures of smaller ones."""
    if not text.isdecimal() or int(text) not in SEEDS:
        raise argparse.ArgumentTypeError(f"{text} is no whole number from {SEEDS.least} to {SEEDS.most}")
    return int(text)


# ---- what the command line says ----


def read_settings(items: Sequence[str]) -> dict[str, float]:
    """Sampling settings of `key=value`. Raises ConfigError naming what is no setting or no number."""
    kinds = {"flow_steps": int}
    names = [field.name for field in dataclasses.fields(SamplerConfig)]
    settings: dict[str, float] = {}
    for item in items:
        name, equals, text = item.partition("=")
        if not equals:
            raise ConfigError(f"{item!r} is no setting: write key=value, with a key of {', '.join(names)}")
        if name not in names:
            raise ConfigError(f"no sampler setting {name!r}; there are {', '.join(names)}")
        kind = kinds.get(name, float)
        try:
            settings[name] = kind(text)
        except ValueError:
            raise ConfigError(f"{item}: {text!r} is no {'whole ' if kind is int else ''}number") from None
    return settings


def check_name(path: str, kind: str) -> None:
    """Raises ConfigError, before anything is drawn, for a name that says another format than that which is written."""
    option, name, ending = ("--film", "an animated WebP", ".webp") if kind == "film" else ("--output", "a PNG", ".png")
    if not path.lower().endswith(ending):
        raise ConfigError(f"{option} {path}: {name} is written: give a name that ends in {ending}")


def chosen_classes(sampler: Sampler, text: str | None) -> list[int]:
    """The indices of the classes to draw, each once, in the order given; evenly spaced ones where none is given.

    text: names or indices with commas between; a name may hold commas when it is the only one. Raises ValueError naming
    the classes for an unknown one.
    """
    known = sampler.class_names
    if text is None:
        spaced = np.linspace(0, len(known) - 1, min(MAXIMUM_CLASSES, len(known))).round().astype(int)
        return spaced.tolist()
    items = [text] if text in known else [item.strip() for item in text.split(",")]
    return list(dict.fromkeys(sampler.class_index(item) for item in items))


def read_drawing(path: str, sampler: Sampler) -> Given:
    """The structure of stage 1 from a picture file. Raises ConfigError where it is none or has no shape in it."""
    from nvg.generator.controls import given_from_drawing
    from nvg.serving.errors import RequestError
    from nvg.serving.images import open_drawing

    try:
        data = storage.read_bytes(with_home(path))
        drawing = open_drawing(data, max_pixels=ServeConfig.max_upload_pixels, field=f"--structure {path}")
        return given_from_drawing(drawing, sampler.tokenizer.config.grid)
    except FileNotFoundError:
        raise ConfigError(f"--structure {path}: no such file") from None
    except RequestError as error:
        raise ConfigError(error.message) from None
    except ValueError as error:
        raise ConfigError(f"--structure {path}: {error}") from None


# ---- drawing ----


def draw_grid(
    sampler: Sampler, classes: Sequence[int], seed: int, given: Given | None, settings: dict[str, float]
) -> bytes:
    """PNG: a row of images for each class, in the order of `classes`, one image for each of its entries."""
    batches = [
        sampler.generate(classes[start : start + BATCH], seed=nth_seed(seed, start), given=given, **settings)
        for start in range(0, len(classes), BATCH)
    ]
    names, rows = _rows(sampler, classes)
    columns = len(classes) // len(names)
    return _png(sample_grid(np.concatenate(batches), rows, names, columns, maximum_classes=len(names)))


def draw_stages(
    sampler: Sampler, classes: Sequence[int], seed: int, given: Given | None, settings: dict[str, float]
) -> bytes:
    """PNG: structure maps over previews, stage by stage, for each entry of `classes`."""
    codes, previews = _stages(sampler, classes, seed, given, settings)
    names, rows = _rows(sampler, classes)
    return _png(stages_picture(codes, previews, rows, names))


def draw_film(
    sampler: Sampler, classes: Sequence[int], seed: int, given: Given | None, settings: dict[str, float]
) -> bytes:
    """Animated WebP: the structure map over the preview of each entry of `classes`, one stage after the other."""
    codes, previews = _stages(sampler, classes, seed, given, settings)
    names, rows = _rows(sampler, classes)
    return film(stages_film(codes, previews, rows, names))


DRAWN = {"grid": draw_grid, "stages": draw_stages, "film": draw_film}


def _stages(
    sampler: Sampler, classes: Sequence[int], seed: int, given: Given | None, settings: dict[str, float]
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Codes (N, L) of the images, and their previews (N, H, W, C) of every stage."""
    codes, previews = [], []
    for start in range(0, len(classes), BATCH):
        steps = list(
            sampler.stages(classes[start : start + BATCH], seed=nth_seed(seed, start), given=given, **settings)
        )
        codes.append(steps[-1].sequence_codes.numpy())
        previews.append([step.preview for step in steps])
    return np.concatenate(codes), [np.concatenate(stage) for stage in zip(*previews, strict=True)]


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def _rows(sampler: Sampler, classes: Sequence[int]) -> tuple[list[str], list[int]]:
    """The names of the rows in order, and each image's row."""
    different = list(dict.fromkeys(classes))
    return [sampler.class_names[index] for index in different], [different.index(index) for index in classes]


# ---- what is said of it ----


def legend(classes: int, count: int, seed: int, kind: str) -> str:
    """One sentence that says what a picture shows of a number of classes. kind: one of DRAWN."""
    images = classes * count
    seeds = f"seed {seed}" if images == 1 else f"seeds {seed} ... {seed + images - 1}"
    if kind == "film":
        order = "top to bottom, column by column" if count > 1 else "left to right"
        return (
            f"{images} {'image' if images == 1 else 'images'}, {seeds}{f' from {order}' if images > 1 else ''}; the "
            "structure map (one colour, one content token) over the preview, from coarse to fine."
        )
    if kind == "stages":
        return (
            f"{images} {'image' if images == 1 else 'images'}, {seeds} from top to bottom; the upper row of each holds "
            "its structure maps (one colour, one content token), the lower row the previews, from coarse to fine."
        )
    columns = "one image" if count == 1 else f"{count} images"
    order = f"{seeds}, row by row" if count > 1 else f"{seeds}, from top to bottom" if images > 1 else seeds
    return f"{classes} {'class' if classes == 1 else 'classes'}, {columns} per row; {order}."


def rebalanced(given: Given) -> str:
    """What became of a drawing whose two sides are of different size."""
    moved, positions = int(given.moved[0]), given.codes.shape[1]
    if moved == 0:
        return "its two sides are equal, so it is taken as it is"
    return f"{moved} of {positions} positions moved to the other side, so that both sides are equal"


if __name__ == "__main__":
    main()
