"""Copy a sampler into a store and load it from there: any URL of fsspec, such as s3://bucket/models/clothes.

python -m examples.store --url memory://models/clothes

Its guide is docs/guides/storage.md.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence

import numpy as np

import nvg
from nvg import storage
from nvg.artifacts.models import sampler_folder
from pipelines.command_line import one_line_errors


def main(argv: Sequence[str] | None = None) -> None:
    """Copy, load and compare. argv: the command line without the program."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--url", default="memory://models/clothes", help="where to (default memory://models/clothes)")
    arguments = parser.parse_args(argv)
    with one_line_errors(OSError):
        with storage.folder_writer(arguments.url) as folder:  # metadata.json goes last: half a folder is no sampler
            shutil.copytree(sampler_folder("fashion-mnist-fast"), folder, dirs_exist_ok=True)
        there, here = nvg.load(arguments.url), nvg.load("fashion-mnist-fast")
    same = np.array_equal(there.generate(["Bag"], seed=0), here.generate(["Bag"], seed=0))
    print(f"{arguments.url}: {len(storage.list_files(arguments.url))} files; the same pictures: {same}")


if __name__ == "__main__":
    main()
