"""Turn the weights that the method's authors published into a sampler.

    nvg import-release --tokenizer ae.ckpt --generators d16.ckpt --output runs/nvg-d16

docs/guides/published_weights.md says where the files come from and under which licence. Nothing in them is run.
"""

from __future__ import annotations

from collections.abc import Sequence

from nvg.released.importing import LICENCE, import_release
from pipelines.command_line import described_parser, one_line_errors


def main(argv: Sequence[str] | None = None) -> None:
    """Convert, and say what was written. argv: the command line without the program."""
    parser = described_parser(__doc__)
    parser.add_argument("--tokenizer", required=True, metavar="FILE", help="the published ae.ckpt")
    parser.add_argument("--generators", required=True, metavar="FILE", help="the published d16, d20 or d24.ckpt")
    parser.add_argument("--output", required=True, metavar="FOLDER", help="the sampler's new folder, a path or URL")
    arguments = parser.parse_args(argv)
    with one_line_errors(OSError):
        config = import_release(arguments.tokenizer, arguments.generators, arguments.output)
    print(
        f"{arguments.output}: {config.name}, {config.tokenizer.image_size}x{config.tokenizer.image_size} images of "
        f"{config.data.num_classes} classes. Licence of the weights: {LICENCE}."
    )


if __name__ == "__main__":
    main()
