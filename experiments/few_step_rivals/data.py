"""The images' granularity sequences, made once and kept."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from experiments.few_step_rivals.samplers import Inputs
from nvg.config import DataConfig
from nvg.data import ImageRecord, make_view, open_source
from nvg.data.images import decode_image, to_float
from nvg.generator import Sampler
from nvg.granularity import GranularitySequence


@dataclass(frozen=True)
class Tokens:
    """Granularity sequences of N images, and their canvases."""

    sequence: GranularitySequence
    labels: Tensor  # (N,)
    canvases: Tensor  # (K + 2, N, L, e)

    @staticmethod
    def of(sampler: Sampler, codes: Tensor, content: Tensor, labels: Tensor) -> Tokens:
        """The tokens of codes (N, L), content (N, 2L - 1), labels (N,)."""
        sequence = GranularitySequence.from_flat(codes, content)
        with torch.no_grad():
            canvases = [
                torch.stack(sampler.tokenizer.quantizer.canvases(sequence[rows]))
                for rows in (slice(first, first + 1000) for first in range(0, len(codes), 1000))
            ]
        return Tokens(sequence, labels, torch.cat(canvases, dim=1))

    def inputs(self, image: Tensor, stage: Tensor) -> Inputs:
        """The inputs of the structure generator for images (M,) and the stages (M,) that it makes."""
        return self.canvases[stage, image], self.labels[image], stage, self.sequence.codes[image]


@torch.no_grad()
def encode(sampler: Sampler, data: DataConfig, split: str, path: Path) -> dict[str, Tensor]:
    """Codes (N, L), content (N, 2L - 1) and labels (N,) of a split's images; made once and kept at path."""
    if not path.exists():
        source = open_source(data, split)
        batches: dict[str, list[Tensor]] = {"codes": [], "content": [], "labels": []}
        for unit in source.units:
            records = [record for record in source.read(unit) if isinstance(record, ImageRecord)]
            pictures = [
                make_view(decode_image(record.data, data.channels), data, 0, 0, record.image_id) for record in records
            ]
            sequence = sampler.tokenizer.encode(to_float(torch.stack([torch.from_numpy(p.copy()) for p in pictures])))
            batches["codes"].append(sequence.codes)
            batches["content"].append(sequence.flat_content())
            batches["labels"].append(torch.tensor([record.label for record in records]))
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: torch.cat(values) for name, values in batches.items()}, path)
    return load_file(path)
