"""The `nvg` command: every job of pipelines/, and drawing and describing, under one name.

    nvg COMMAND ...

A command takes the arguments of its file and ends with its exit code: `nvg run` is `python pipelines/run.py`. Its
module is imported when the command is known, so that `nvg --help` costs no more than Python's own start.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

import nvg
from nvg.errors import MissingPackage
from nvg.extras import require


class Command(NamedTuple):
    """A module whose `main()` reads the command line and returns the exit code, None for 0."""

    module: str
    does: str  # one sentence for `nvg --help`
    extras: tuple[str, ...] = ()  # what it needs beside a plain installation (nvg/extras.py)


TRAIN, RUN = ("train",), ("train", "eval")
COMMANDS = {
    "run": Command("pipelines.run", "Run the whole pipeline, from images to an evaluated sampler.", RUN),
    "train-tokenizer": Command("pipelines.train_tokenizer", "Train the tokenizer on images.", TRAIN),
    "build-tokens": Command("pipelines.build_tokens", "Turn an image set into granularity tokens.", TRAIN),
    "train": Command("pipelines.train", "Train the generators on tokens; the result is a sampler.", TRAIN),
    "distill": Command("pipelines.distill", "Distil a sampler into one that draws in fewer passes.", TRAIN),
    "evaluate": Command(
        "pipelines.evaluate", "Measure a sampler: distances, accuracy, reconstructions, pictures.", RUN
    ),
    "serve": Command("pipelines.serve", "Serve a sampler over HTTP, with the studio page.", ("serve",)),
    "sample": Command("nvg.sample", "Draw images with a sampler into a picture."),
    "import-release": Command(
        "pipelines.import_release", "Turn the weights that the method's authors published into a sampler."
    ),
    "push": Command("pipelines.push", "Publish a sampler on the Hugging Face hub, with a model card.", ("hub",)),
    "export-diffusers": Command(
        "pipelines.export_diffusers", "Write a sampler as a folder that diffusers loads.", ("diffusers",)
    ),
    "verify": Command("pipelines.verify", "Check tokens, tokenizers, samplers and checkpoints for damage.", TRAIN),
    "describe": Command("nvg.describe", "Print the parameters, tokens and arithmetic of configurations."),
    "sweep": Command("pipelines.sweep", "Run every combination of some settings and compare the results.", RUN),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code. argv: the command line without the program."""
    name, *rest = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help"):
        print(usage())
        return 0
    if name == "--version":
        print(f"nvg {nvg.__version__}")
        return 0
    if name not in COMMANDS:
        print(f"error: {unknown(name)}", file=sys.stderr)
        return 2
    command = COMMANDS[name]
    try:
        require(f"nvg {name}", *command.extras)
    except MissingPackage as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    sys.argv = [f"nvg {name}", *rest]  # as if the command's file were the program: its usage and Ray's lists name it
    return importlib.import_module(command.module).main() or 0


def usage() -> str:
    """The text of `nvg --help`."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.does}" for name, command in COMMANDS.items()]
    return "\n".join(
        (
            "usage: nvg COMMAND ...",
            "       nvg COMMAND --help",
            "       nvg --version",
            "",
            "Next visual granularity generation: train, measure, serve and draw.",
            "",
            *lines,
            "",
            "Draw at once, with a model that ships with the package:",
            "",
            "  nvg sample fashion-mnist --classes Bag,Coat --count 4 --output grid.png",
        )
    )


def unknown(name: str) -> str:
    """What to say of a command that is none: the nearest one, or all of them."""
    import difflib

    near = difflib.get_close_matches(name, COMMANDS, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"the commands are {', '.join(COMMANDS)}"
    return f"nvg has no command {name!r}; {hint}"


if __name__ == "__main__":
    sys.exit(main())
