"""Images in memory, and their tokens, encoded once and kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from nvg import storage
from nvg.artifacts.files import write_safetensors
from nvg.autoencoder import Autoencoder
from nvg.config import DataConfig
from nvg.data import ImageRecord, make_view, open_source
from nvg.data.images import decode_image, to_float
from nvg.granularity import GranularitySequence


@dataclass(frozen=True)
class Tokens:
    """Granularity sequences and classes of N images."""

    sequence: GranularitySequence
    labels: Tensor  # (N,)

    @staticmethod
    def of(kept: dict[str, Tensor]) -> Tokens:
        """The tokens that `encode` kept."""
        return Tokens(GranularitySequence.from_flat(kept["codes"], kept["content"]), kept["labels"])

    def rows(self, index: Tensor) -> tuple[GranularitySequence, Tensor]:
        """Those of some images."""
        return self.sequence[index], self.labels[index]


def views(data: DataConfig, split: str) -> Iterator[tuple[Tensor, Tensor]]:
    """A split's images, unit by unit: uint8 (n, H, W, C), and their classes (n,)."""
    source = open_source(data, split)
    for unit in source.units:
        records = [record for record in source.read(unit) if isinstance(record, ImageRecord)]
        made = [make_view(decode_image(one.data, data.channels), data, 0, 0, one.image_id) for one in records]
        yield torch.stack([torch.from_numpy(view.copy()) for view in made]), torch.tensor([r.label for r in records])


def all_images(data: DataConfig, split: str) -> tuple[Tensor, Tensor]:
    """A split's images at once: uint8 (N, H, W, C), and their classes (N,)."""
    images, labels = zip(*views(data, split), strict=True)
    return torch.cat(images), torch.cat(labels)


@torch.no_grad()
def encode(tokenizer: Autoencoder, data: DataConfig, split: str, path: Path) -> dict[str, Tensor]:
    """The tokens of a split's images, one row an image: content (N, T), labels (N,) and, of a tokenizer with structure,
    codes (N, L). Made once and kept at path."""
    if not path.exists():
        batches: dict[str, list[Tensor]] = {"content": [], "labels": []}
        for images, labels in views(data, split):
            sequence = tokenizer.encode(to_float(images))
            batches["content"].append(sequence.flat_content())
            batches["labels"].append(labels)
            if isinstance(sequence, GranularitySequence):
                batches.setdefault("codes", []).append(sequence.codes)
        save({name: torch.cat(values) for name, values in batches.items()}, path)
    return load_file(path)


def save(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors to a file, which is there whole or not at all."""
    with storage.file_writer(str(path)) as file:
        write_safetensors(file, tensors)
