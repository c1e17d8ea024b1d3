"""Write what `nvg push` would upload into a folder, and load the sampler from there: no network, no account.

python -m examples.hub --output for_the_hub

Its guide is docs/guides/hub.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import nvg
from nvg.artifacts.models import sampler_folder
from nvg.hub import prepare
from pipelines.command_line import one_line_errors

NAME, REPOSITORY, DATASET = "fashion-mnist-fast", "my-org/my-sampler", "zalando-datasets/fashion_mnist"


def main(argv: Sequence[str] | None = None) -> None:
    """Write the folder, list it, and draw with it. argv: the command line without the program."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", default="for_the_hub", help="the new folder (default for_the_hub)")
    arguments = parser.parse_args(argv)
    with one_line_errors(OSError):
        folder = Path(arguments.output)
        folder.mkdir(parents=True)
        files = prepare(sampler_folder(NAME), REPOSITORY, folder, dataset=DATASET)
    for name, size in files.files.items():
        print(f"{name:<24}{size:>12,} bytes")
    print(f"Licence on the card: {files.licence}")
    there, here = nvg.load(str(folder)), nvg.load(NAME)
    same = np.array_equal(there.generate(["Bag"], seed=0), here.generate(["Bag"], seed=0))
    print(f"{folder}: README.md is the card; the folder draws the same pictures: {same}")


if __name__ == "__main__":
    main()
