"""See how nvg reads a folder of images, one folder per class, before you train on it.

python -m examples.your_images FOLDER --output views.png

Its guide is docs/guides/your_images.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nvg import config as configuration
from nvg.data import BrokenImage, BrokenImageError, decode_image, make_view, open_source
from nvg.pictures import sample_grid
from pipelines.command_line import one_line_errors

EACH = 6  # images of a class that are shown


def main(argv: Sequence[str] | None = None) -> None:
    """Print the classes and write the picture. argv: the command line without the program."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", metavar="FOLDER", help="holds a folder of images per class; a path or URL")
    parser.add_argument("--size", type=int, default=32, help="of the images that are trained on (default 32)")
    parser.add_argument("--output", default="views.png", help="the picture to write (default views.png)")
    arguments = parser.parse_args(argv)
    classes = sum(item.is_dir() for item in Path(arguments.folder).glob("*"))
    settings = ["data.source=folder", f"data.train={arguments.folder}", f"data.num_classes={classes}"]
    with one_line_errors(ValueError, OSError):
        config = configuration.load("conf/smoke.yaml", [*settings, f"data.image_size={arguments.size}"])
        source = open_source(config.data, "train")
        print(f"{arguments.folder}: {source.count()} images of {', '.join(source.class_names)}")
        images: list[list[np.ndarray]] = [[] for _ in source.class_names]
        for record in (record for unit in source.units for record in source.reader().read(unit)):
            if isinstance(record, BrokenImage):
                print(f"cannot be read: {record.image_id}: {record.reason}")
            elif len(images[record.label]) < EACH:
                try:
                    decoded = decode_image(record.data, config.data.channels)
                except BrokenImageError as error:  # a training leaves it out, and names it in quarantine.parquet
                    print(f"cannot be read: {record.image_id}: {error}")
                else:
                    images[record.label].append(make_view(decoded, config.data, 0, config.seed, record.image_id))
    labels = [label for label, some in enumerate(images) for _ in some]
    together = np.stack([image for some in images for image in some])
    sample_grid(together, labels, source.class_names, EACH).save(arguments.output)
    print(f"{arguments.output}: what a training sees of them. Now follow docs/guides/your_images.md.")


if __name__ == "__main__":
    main()
