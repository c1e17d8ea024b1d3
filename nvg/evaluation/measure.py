"""The distributed part of an evaluation: one stream of work by Ray Data, one pool of actors that hold all networks.

A row is something to draw (`sample`, `stages`), or images to look at: real ones of a split or of an .npz file (their
features), or held-out ones to encode and decode (`reconstruct`). Reading tasks decode images on CPUs; the actors, as
many as cluster.encoders, do the rest. Rows come back in order.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from nvg import storage
from nvg.cluster import actors, blocks, device_of, progress, set_threads
from nvg.config import Config
from nvg.data import ImageSource
from nvg.data.images import to_float, to_uint8
from nvg.data.stream import read_pieces
from nvg.evaluation.features import BATCH, load_network

SHOWN = 20  # images of reconstruction.png
Row = dict[str, Any]
# What every row that goes to an actor has, and every row that comes back.
ASKED: Row = {"kind": "", "split": "", "unit": "", "labels": [], "seed": 0, "images": b""}
ANSWERED: Row = {
    "kind": "",
    "split": "",
    "labels": [],
    "images": b"",
    "features": b"",
    "logits": b"",
    "reconstructions": b"",
    "reconstructed_features": b"",
    "errors": b"",
    "lpips": b"",
    "counts": b"",
    "codes": b"",
}


# ---- the work ----


def sample_rows(config: Config, classes: int) -> list[Row]:
    """Image j has class j mod classes and seed evaluate.seed + j, whichever actor draws it."""
    settings = config.evaluate
    labels = [number % classes for number in range(settings.samples_per_class * classes)]
    return [
        ASKED | {"kind": "sample", "labels": labels[first : first + settings.batch_size], "seed": settings.seed + first}
        for first in range(0, len(labels), settings.batch_size)
    ]


def stage_rows(config: Config, classes: int, count: int) -> list[Row]:
    """One row: one image each of `count` classes, evenly spaced, to be kept at every stage."""
    chosen = np.linspace(0, classes - 1, min(count, classes)).round().astype(int).tolist()
    return [ASKED | {"kind": "stages", "labels": chosen, "seed": config.evaluate.seed}]


def image_rows(kind: str, split: str, source: ImageSource) -> list[Row]:
    """The units of a split, to be read by tasks."""
    return [ASKED | {"kind": kind, "split": split, "unit": json.dumps(unit)} for unit in source.units]


def npz_rows(path: str) -> Iterator[Row]:
    """The images of an .npz file, read here: a zip member has no way to its middle."""
    from nvg.evaluation.npz import read_images

    with storage.open(path) as file:
        for images in read_images(file, BATCH):
            yield ASKED | {"kind": "features", "split": path, "images": _pack(images)}


# ---- the stream ----


def measure(
    config: Config,
    rows: list[Row],
    sources: dict[str, ImageSource],
    sampler_folder: str,
    network: tuple[str, str],
    total: int,
) -> Iterator[Row]:
    """Rows to answers, in order, with a progress bar over `total` images.

    sources: of the splits that rows name. network: kind and path, as for nvg.evaluation.features.load_network.
    """
    readers = {split: source.reader() for split, source in sources.items()}

    cluster = config.cluster

    def read(row: Row) -> Iterator[Row]:
        if not row["unit"]:
            yield row
            return
        for piece in read_pieces(readers[row["split"]], json.loads(row["unit"]), config.data, 0, config.evaluate.seed):
            if piece.ids:
                yield row | {"images": _pack(piece.images), "labels": piece.labels}

    answers = (
        blocks(rows)
        .flat_map(read, **cluster.reader)
        .map(
            Measure,  # type: ignore[arg-type]  # a class, for an actor
            fn_constructor_args=(config, sampler_folder, network),
            compute=actors(cluster),
            **cluster.actor,
        )
    )
    answers.context.execution_options.preserve_order = True
    answers.context.enable_progress_bars = False
    bar = progress(total, "evaluation", "image")
    for answer in answers.iter_rows():
        bar.update(len(answer["labels"]))
        yield answer
    bar.close()


class Measure:
    """An actor: the sampler and the feature network."""

    def __init__(self, config: Config, sampler_folder: str, network: tuple[str, str]) -> None:
        from nvg.artifacts.models import load_sampler

        set_threads(config.cluster)
        device = device_of(config.cluster)
        self.config = config
        self.sampler = load_sampler(sampler_folder, config.sampler).to(device)
        self.network = load_network(*network, device)
        self.lpips = None
        if config.tokenizer_train.lpips_weights is not None:
            from nvg.frozen.lpips import load_lpips

            self.lpips = load_lpips(config.tokenizer_train.lpips_weights).to(device)

    def __call__(self, row: Row) -> Row:
        answer = getattr(self, f"_{row['kind']}")(row)
        return ANSWERED | {"kind": row["kind"], "split": row["split"], "labels": row["labels"]} | answer

    def _sample(self, row: Row) -> Row:
        images = self.sampler.generate([int(label) for label in row["labels"]], seed=int(row["seed"]))
        return {"images": _pack(images)} | self._look(torch.from_numpy(images))

    def _stages(self, row: Row) -> Row:
        steps = list(self.sampler.stages([int(label) for label in row["labels"]], seed=int(row["seed"])))
        previews = np.stack([step.preview for step in steps])
        return {"images": _pack(previews), "codes": _pack(steps[-1].sequence_codes.cpu().numpy())}

    def _features(self, row: Row) -> Row:
        images = unpack(row["images"])
        labels = row["labels"] if len(row["labels"]) else [-1] * len(images)  # an .npz file has none
        return {"labels": labels} | self._look(torch.from_numpy(images))

    def _reconstruct(self, row: Row) -> Row:
        from nvg.evaluation.reconstruction import code_counts, mse_by_stages

        tokenizer = self.sampler.tokenizer
        pixels = unpack(row["images"])
        decoded, errors, distances, counts = [], [], [], []
        for some in np.array_split(pixels, -(-len(pixels) // self.config.cluster.encode_batch)):
            images = to_float(some).to(self.sampler.device)
            sequence = tokenizer.encode(images)
            reconstruction = tokenizer.decode(sequence)
            errors.append(mse_by_stages(images, sequence, tokenizer.decode).cpu())
            counts.append(code_counts(sequence, tokenizer.config.codebook_size))
            decoded.append(to_uint8(reconstruction).cpu())
            if self.lpips is not None:
                with torch.no_grad():
                    distances.append(self.lpips(reconstruction, images).flatten().cpu())
        result = torch.cat(decoded)
        features, _ = self.network(result)
        return {
            "images": _pack(pixels[:SHOWN]),
            "reconstructions": _pack(result.numpy()[:SHOWN]),
            "reconstructed_features": _pack(features.numpy()),
            "errors": _pack(torch.cat(errors).numpy()),
            "lpips": _pack(torch.cat(distances).numpy()) if distances else b"",
            "counts": _pack(torch.stack(counts).to(torch.int32).numpy()),
        }

    def _look(self, images: torch.Tensor) -> Row:
        features, logits = self.network(images)
        return {"features": _pack(features.numpy()), "logits": _pack(logits.numpy())}


# ---- arrays in rows ----


def _pack(array: np.ndarray) -> bytes:
    """An array with its shape and type as bytes: rows of one column may differ in shape."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def unpack(data: bytes) -> np.ndarray:
    """The inverse of `_pack`."""
    return np.load(io.BytesIO(data), allow_pickle=False)
