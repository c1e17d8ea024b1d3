"""Write a sampler as a folder that diffusers' `DiffusionPipeline.from_pretrained` loads.

    nvg export-diffusers runs/fashion_mnist_hour/generators-KEY clothes

Whoever loads the folder needs nvg installed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nvg import storage
from nvg.artifacts.models import load_sampler, model_config, read_metadata, sampler_folder
from nvg.config import with_home
from nvg.hub import card, read_evaluation
from pipelines.command_line import described_parser, one_line_errors


def main(argv: Sequence[str] | None = None) -> None:
    """Write the folder and say how to load it. argv: the command line without the program."""
    parser = described_parser(__doc__)
    parser.add_argument(
        "sampler", help="a sampler: a name such as fashion-mnist, a folder, a URL, models:/NAME@champion"
    )
    parser.add_argument("output", metavar="FOLDER", help="the new folder, on this machine")
    arguments = parser.parse_args(argv)
    with one_line_errors(OSError):
        from nvg.diffusers_pipeline import export

        source, output = sampler_folder(arguments.sampler), Path(with_home(arguments.output))
        metadata, config = read_metadata(source), model_config(source)
        export(load_sampler(source), config, output)
        figures = read_evaluation(source, None)
        text = card(source, config, metadata, f"ORG/{output.name}", dataset=None, figures=figures, library="diffusers")
        storage.write_bytes(str(output / "README.md"), text.encode())
    print(
        f"{output}: load it with\n"
        f'  diffusers.DiffusionPipeline.from_pretrained("{output}", custom_pipeline="{output}", trust_remote_code=True)'
    )


if __name__ == "__main__":
    main()
