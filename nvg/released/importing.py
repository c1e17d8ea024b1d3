"""The published tokenizer and generators as a sampler's folder (docs/guides/published_weights.md)."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from nvg import config as configuration
from nvg import storage
from nvg.artifacts.files import compare_shapes, shapes, shapes_of
from nvg.artifacts.models import finish_folder, write_sampler
from nvg.autoencoder import Autoencoder
from nvg.config import Config, ContentConfig, StructureConfig, TokenizerConfig
from nvg.errors import CheckpointError, ConfigError
from nvg.generator import ContentGenerator, StructureGenerator
from nvg.imagenet import shipped_class_names
from nvg.released.checkpoints import AGAIN, GENERATORS, TOKENIZER, Kind, Released, read_checkpoint
from nvg.released.generators import generators
from nvg.released.tokenizer import convert_tokenizer

LICENCE = "S-Lab License 1.0, non-commercial"
PAPER = "Next Visual Granularity Generation, arXiv 2508.12811"
SETTINGS = {  # of the published figures
    "flow_steps": 25,
    "flow_shift": 0.5,
    "structure_guidance": 2.5,
    "content_guidance": 3.5,
    "top_p": 0.5,
    "structure_temperature": 0.0,
}
CHUNK = 2**22  # bytes read at once for a hash


@dataclasses.dataclass
class Converted:
    """The three networks of a sampler under our names."""

    tokenizer_config: TokenizerConfig
    content_config: ContentConfig
    structure_config: StructureConfig
    tokenizer: dict[str, Tensor]
    content: dict[str, Tensor]
    structure: dict[str, Tensor]
    unknown: list[str]  # names in the files that are neither used nor known as left out


def import_release(tokenizer: str, generators: str, output: str) -> Config:
    """Write the sampler's folder `output` (path or URL) from the published files; returns its configuration.

    tokenizer: ae.ckpt; generators: d16.ckpt, d20.ckpt or d24.ckpt, local files; the shapes tell which. The folder
    appears when it is whole. Raises CheckpointError naming the file that cannot be used, ConfigError for an output
    that is there already.
    """
    if storage.list_files(output) if storage.is_url(output) else storage.local_path(output).exists():
        raise ConfigError(f"--output {output} is there already: give another folder, or remove it")
    paths = {TOKENIZER: Path(tokenizer), GENERATORS: Path(generators)}
    with storage.folder_writer(output) as folder:
        converted = convert({kind: (path, read_checkpoint(path, kind, folder)) for kind, path in paths.items()})
        config = sampler_config(output, converted)
        names, classes = shipped_class_names(), config.data.num_classes
        files = {kind.name: described(path) for kind, path in paths.items()}
        source = {"paper": PAPER, "files": files, "unknown_tensors": converted.unknown}
        record = write_sampler(
            str(folder),
            tokenizer=converted.tokenizer,
            parts={"content": converted.content, "structure": converted.structure},
            config=config,
            class_names=names if len(names) == classes else [str(number) for number in range(classes)],
            metadata={"licence": LICENCE, "source": source},
        )
        (folder / "MODEL_CARD.md").write_text(model_card(config, files))
        finish_folder(str(folder), record)
    return config


def convert(files: Mapping[Kind, tuple[Path, Released]]) -> Converted:
    """The networks of the two files, their shapes checked against the networks that their configurations build.

    files: path and tensors of each. Raises CheckpointError naming the file.
    """
    (first, taken), (second, weights) = files[TOKENIZER], files[GENERATORS]
    with _of(TOKENIZER, first):
        config, state = convert_tokenizer(taken.tensors)
        _check(Autoencoder, config, state)
    with _of(GENERATORS, second):
        content_config, content, structure_config, structure = generators(weights.tensors, grid=config.grid)
        _check(ContentGenerator, content_config, content)
        _check(StructureGenerator, structure_config, structure)
    if (content_config.code_width, content_config.codebook_size) != (config.code_width, config.codebook_size):
        raise CheckpointError(
            f"{second} draws {content_config.codebook_size} codes of {content_config.code_width} numbers, and {first} "
            f"has {config.codebook_size} of {config.code_width}: give two files of one release"
        )
    unknown = [*taken.unknown, *weights.unknown]
    return Converted(config, content_config, structure_config, state, content, structure, unknown)


def _check(network: type[nn.Module], config: Any, state: dict[str, Tensor]) -> None:
    compare_shapes(shapes_of(lambda: network(config)), shapes(state), "the file")


@contextmanager
def _of(kind: Kind, path: Path) -> Iterator[None]:
    """Name the file in what a conversion raises."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{kind.option} {path}: {error}: {AGAIN}") from None


def sampler_config(output: str, converted: Converted) -> Config:
    """The configuration of the sampler: networks as converted, settings and images as those of the published figures.

    Its paths of images are examples; whoever evaluates gives data.test.
    """
    tokenizer, content = converted.tokenizer_config, converted.content_config
    return configuration.from_dict(
        {
            "name": f"nvg_d{content.depth}",
            "output": output,
            "data": {
                "source": "ilsvrc",
                "train": "/data/imagenet/train",
                "test": "/data/imagenet/val",
                "image_size": tokenizer.image_size,
                "channels": tokenizer.channels,
                "num_classes": content.num_classes,
                "crop_scale": 1.125,
                "resize": "lanczos8",
                "flip": False,
            },
            "tokenizer": dataclasses.asdict(tokenizer),
            "content": dataclasses.asdict(content),
            "structure": dataclasses.asdict(converted.structure_config),
            "sampler": SETTINGS,
        },
        where="the published files",
    )


def described(path: Path) -> dict[str, Any]:
    """Name, size and hash of a file, so that a folder says what it was made of."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def model_card(config: Config, files: dict[str, dict[str, Any]]) -> str:
    """MODEL_CARD.md: what the folder holds, where it comes from, and under which licence."""
    rows = "\n".join(f"| {name} | {item['name']}, SHA-256 {item['sha256']} |" for name, item in files.items())
    size, classes = config.tokenizer.image_size, config.data.num_classes
    return f"""# {config.name}

Draws {size}x{size} images of {classes:,} classes. These are weights that the authors of "{PAPER}" published,
under the names of this project: `nvg import-release` made the folder, and trained nothing.

| | |
| --- | --- |
| licence | {LICENCE}: whoever uses these weights has accepted it on the authors' model page |
{rows}
| tokenizer | the weights as trained, on which the generators were trained |
| generators | the averaged weights, with which the published figures were drawn |

The settings in config.yaml are those of the published figures.
"""
