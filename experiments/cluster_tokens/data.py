"""The images of an experiment as granularity sequences, encoded once and kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

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


@torch.no_grad()
def encode(tokenizer: Autoencoder, data: DataConfig, split: str, path: Path) -> Tokens:
    """The tokens of a split's images; made once and kept at path."""
    if not path.exists():
        batches: dict[str, list[Tensor]] = {"codes": [], "content": [], "labels": []}
        for images, labels in views(data, split):
            sequence = tokenizer.encode(to_float(images))
            batches["codes"].append(sequence.codes)
            batches["content"].append(sequence.flat_content())
            batches["labels"].append(labels)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: torch.cat(values) for name, values in batches.items()}, path)
    kept = load_file(path)
    return Tokens(GranularitySequence.from_flat(kept["codes"], kept["content"]), kept["labels"])
