"""Publish a sampler on the Hugging Face hub, with a model card. Without --yes it prints what it would do.

    nvg push runs/fashion_mnist_hour/generators-KEY my-org/my-sampler --licence mit
    nvg push fashion-mnist my-org/fashion-mnist --dataset zalando-datasets/fashion_mnist --yes

The card states the licence that metadata.json names. Weights that name none get the one of --licence, or none.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from nvg.artifacts.models import sampler_folder
from nvg.hub import Upload, prepare, upload
from pipelines.command_line import described_parser, one_line_errors


def main(argv: Sequence[str] | None = None) -> None:
    """Print what is uploaded, and upload it with --yes. argv: the command line without the program."""
    parser = described_parser(__doc__)
    parser.add_argument(
        "sampler", help="a sampler: a name such as fashion-mnist, a folder, a URL, models:/NAME@champion"
    )
    parser.add_argument("repository", metavar="ORG/NAME", help="the model's name on the hub")
    parser.add_argument("--licence", metavar="ID", help="for weights that name none: apache-2.0, mit, cc-by-4.0, ...")
    parser.add_argument(
        "--dataset",
        metavar="ORG/NAME",
        help="its data set on the hub, for the card (default: that of data.train=hf://...)",
    )
    parser.add_argument(
        "--evaluation", metavar="FOLDER", help="its evaluation, for the card (default: the one in its folder)"
    )
    parser.add_argument("--private", action="store_true", help="create the repository for its owner alone")
    parser.add_argument("--yes", action="store_true", help="upload; without it nothing leaves this machine")
    arguments = parser.parse_args(argv)
    with one_line_errors(OSError), tempfile.TemporaryDirectory() as folder:
        files = prepare(
            sampler_folder(arguments.sampler),
            arguments.repository,
            Path(folder),
            licence=arguments.licence,
            dataset=arguments.dataset,
            evaluation=arguments.evaluation,
        )
        print(summary(files, arguments.private), flush=True)
        if not arguments.yes:
            print("Nothing was uploaded: run the same command with --yes.")
            return
        address = upload(files, private=arguments.private)
        print(f'{address}: uploaded. Load it with nvg.load("hf://{arguments.repository}").')


def summary(files: Upload, private: bool) -> str:
    """What goes to the hub: names and bytes, the licence, and the card."""
    sizes = files.files
    licence = files.licence or "none is stated, so nobody else may use the weights: name one with --licence"
    return "\n".join(
        (
            f"{files.repository}: a {'private' if private else 'public'} model on the Hugging Face hub, "
            f"{len(sizes)} files, {sum(sizes.values()) / 1e6:.1f} MB",
            *(f"  {name:<24}{size:>14,} bytes" for name, size in sizes.items()),
            f"Licence: {licence}",
            "README.md:",
            *(f"  {line}".rstrip() for line in files.card.splitlines()),
        )
    )


if __name__ == "__main__":
    main()
