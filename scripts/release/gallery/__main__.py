"""Draw the gallery: docs/gallery.md and the pictures that it shows.

    python -m scripts.release.gallery --sampler fashion-mnist

Held-out images are those of the data that a sampler's configuration names; CHOSEN in figures.py says which. With the
studio running (make serve), its pictures for the other pages are taken too:

    python -m scripts.release.gallery --sampler fashion-mnist --studio http://127.0.0.1:8000
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import nvg
from nvg.artifacts.models import model_config, sampler_folder
from pipelines.command_line import one_line_errors
from scripts.release.gallery.figures import FIGURES, Scene, choice, held_out
from scripts.release.gallery.page import figure_name, page

ROOT = Path(__file__).resolve().parents[3]


def main(argv: Sequence[str] | None = None) -> None:
    """Draw every figure of every sampler, and write the page. argv: the command line without the program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sampler", nargs="+", default=["fashion-mnist"], help="names, folders, URLs or models:/...")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "gallery.md", help="the page; pictures in figures/")
    parser.add_argument("--studio", metavar="URL", help="of a running studio, whose pictures are taken too")
    arguments = parser.parse_args(argv)
    folder = arguments.out.parent / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    samplers = {}
    with one_line_errors(ValueError, OSError):
        for location in arguments.sampler:
            sampler, name = nvg.load(location), Path(location).name
            data, chosen = model_config(sampler_folder(location)).data, choice(name, sampler)
            scene = Scene(sampler, chosen, held_out(data, sampler.class_names, chosen.images()))
            samplers[name] = sampler
            for file, draw in FIGURES.items():
                path = folder / figure_name(name, file)
                path.write_bytes(draw(scene))
                print(path)
        arguments.out.write_text(page(samplers))
        print(arguments.out)
    if arguments.studio is not None:
        from scripts.release.gallery.studio import take

        take(arguments.studio, folder)


if __name__ == "__main__":
    main()
