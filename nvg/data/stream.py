"""Ray Data at the edge of training: images and tokens as streams of batches, in an order that follows from the seed.

Both streams are exact by construction: batch b of epoch e is a function of (data, seed, epoch, b) and, for images, of
the worker's rank. A training that resumes reads on from any batch and sees the batches of an unbroken run.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from nvg.cluster import blocks
from nvg.config import Config, DataConfig
from nvg.data.features import CHECKSUM, with_features
from nvg.data.images import BrokenImageError, decode_image, make_view
from nvg.data.records import BrokenImage, ImageSource, Unit
from nvg.data.tokens import metadata_format, part_files, read_metadata, read_part, to_arrays
from nvg.errors import DataError

Arrays = dict[str, np.ndarray]
ReadBatch = Callable[[dict[str, Any]], Any]  # what Ray Data's map_batches calls: a batch to a table, or to several
BUFFER_BYTES = 256 * 2**20  # of images that are shuffled together
BUFFER_ROWS = 8192
ITEM_BYTES = 32 * 2**20  # of token parts that one task reads: starting a task costs more than reading a small part


@dataclass(frozen=True)
class Piece:
    """One view of some consecutive images of a unit."""

    number: int  # in the unit, from 0
    last: bool  # whether it ends the unit
    images: np.ndarray  # uint8 (n, S, S, C)
    ids: list[str]
    labels: list[int]
    broken: list[BrokenImage]  # the images among them that cannot be read


def read_pieces(reader: ImageSource, unit: Unit, config: DataConfig, view: int, seed: int) -> Iterator[Piece]:
    """One view of a unit's images, data.unit_images at a time: a tar shard of 10,000 images is never in memory whole.

    Gives at least one piece; nearly every unit is just one.
    """
    records = reader.read(unit)
    ahead = next(records, None)
    for number in itertools.count():
        images: list[np.ndarray] = []
        ids: list[str] = []
        labels: list[int] = []
        broken: list[BrokenImage] = []
        while ahead is not None and len(ids) + len(broken) < config.unit_images:
            record, ahead = ahead, next(records, None)
            if isinstance(record, BrokenImage):
                broken.append(record)
                continue
            try:
                image = decode_image(record.data, config.channels)
            except BrokenImageError as error:
                broken.append(BrokenImage(record.image_id, record.path, str(error)))
                continue
            images.append(make_view(image, config, view, seed, record.image_id))
            ids.append(record.image_id)
            labels.append(record.label)
        shape = (len(ids), config.image_size, config.image_size, config.channels)
        pixels = np.stack(images) if images else np.zeros(shape, np.uint8)
        yield Piece(number, ahead is None, pixels, ids, labels, broken)
        if ahead is None:
            return


def read_view(
    reader: ImageSource, unit: Unit, config: DataConfig, view: int, seed: int
) -> tuple[np.ndarray, list[str], list[int], list[BrokenImage]]:
    """One view of a unit's images at once: uint8 (n, S, S, C), their ids and labels, and the broken images."""
    pieces = list(read_pieces(reader, unit, config, view, seed))
    return (
        np.concatenate([piece.images for piece in pieces]),
        [image_id for piece in pieces for image_id in piece.ids],
        [label for piece in pieces for label in piece.labels],
        [item for piece in pieces for item in piece.broken],
    )


# ---- images ----


def image_batches(
    config: Config,
    source: ImageSource,
    *,
    epoch: int,
    rank: int,
    world: int,
    batch_size: int,
    seed: int,
    skip: int = 0,
    random_views: bool = True,
) -> Iterator[dict[str, Tensor]]:
    """A worker's batches of an epoch, of its own batch_size b: images uint8 (b, S, S, C) and labels (b,) int64.

    The units are shuffled by (seed, epoch), the worker reads every world-th of them, with views that differ from epoch
    to epoch (random_views=False: centre crops), and mixes their images in a buffer: no image comes twice. When its
    units end before the caller has enough batches, the worker goes on with the other workers' units, and ends after
    two times the data. Broken images are left out: build_tokens puts them on record. skip: batches to leave out, which
    are read but not returned.
    """
    data = config.data
    order = np.random.default_rng([seed, epoch]).permutation(len(source.units)).tolist()
    shares = [order[(rank + shift) % world :: world] for shift in range(world)] * 2  # the worker's own units first
    read = _image_reader(source, data, epoch + 1 if random_views else 0, seed)
    image_bytes = data.image_size * data.image_size * data.channels
    rows = max(batch_size, min(BUFFER_ROWS, BUFFER_BYTES // image_bytes))

    def batches() -> Iterator[Arrays]:
        rest: list[Arrays] = []
        for number, units in enumerate(shares):
            items = [{"unit": json.dumps(source.units[unit])} for unit in units]
            if not items:
                continue
            tables = _in_order(items, read, rows, config.cluster.reader)
            chunks = itertools.chain(rest, (_image_arrays(table, data) for table in tables))
            short = yield from shuffled(chunks, batch_size, rows, [seed, epoch, rank, number])
            rest = [short] if short is not None else []

    yield from map(_tensors, itertools.islice(batches(), skip, None))


def _image_reader(source: ImageSource, data: DataConfig, view: int, seed: int) -> ReadBatch:
    """The function of a task that reads one unit: its pieces, each a table of images and labels."""
    reader = source.reader()
    size = data.image_size * data.image_size * data.channels

    def read(batch: dict[str, Any]) -> Iterator[pa.Table]:
        for piece in read_pieces(reader, json.loads(batch["unit"][0]), data, view, seed):
            pixels = pa.FixedSizeListArray.from_arrays(pa.array(piece.images.reshape(-1)), size)
            yield pa.table({"images": pixels, "labels": pa.array(np.asarray(piece.labels, np.int64))})

    return read


def _image_arrays(table: pa.Table, data: DataConfig) -> Arrays:
    chunks = [chunk.flatten().to_numpy() for chunk in table["images"].chunks]
    pixels = np.concatenate(chunks) if chunks else np.zeros(0, np.uint8)
    images = pixels.reshape(-1, data.image_size, data.image_size, data.channels)
    return {"images": images, "labels": table["labels"].to_numpy()}


# ---- tokens ----


def token_batches(
    folder: str,
    *,
    epoch: int,
    batch_size: int,
    seed: int,
    shuffle_rows: int,
    rows: slice = slice(None),
    skip: int = 0,
    reader: Mapping[str, Any] | None = None,
) -> Iterator[dict[str, Tensor]]:
    """A worker's batches of an epoch of tokens: of the batch_size rows of all workers, its b rows, those of `rows`.

    A batch holds codes (b, L), content (b, 2L - 1), labels (b,), all int64, and features (b, L, D) float16 where the
    set has them. Every worker streams the tokens of all rows in one order, which follows from (seed, epoch), and keeps
    its own of each global batch. They are tiny (1.3 kB a row at L = 256), so this costs a worker a few MB/s, and it
    makes batch b the same for any number of workers. Features are not: a worker fetches those of its own rows alone
    (nvg/data/features.py). Epoch e reads view e mod views. The last short batch is left out.
    reader: Ray's options of the reading tasks, half a CPU without any.
    """
    metadata = read_metadata(folder)
    epoch_view = epoch % metadata["views"]
    files = [path for (_, view), paths in sorted(part_files(folder).items()) if view == epoch_view for path in paths]
    order = np.random.default_rng([seed, epoch]).permutation(len(files))
    paths = [files[index] for index in order]
    buffer = max(batch_size, shuffle_rows // 2)
    together = parts_together(metadata, buffer)
    items = [
        {"first": first, "paths": json.dumps(paths[first : first + together])}
        for first in range(0, len(paths), together)
    ]
    tables = _in_order(items, token_reader(metadata["fingerprint"]), buffer, reader or {"num_cpus": 0.5})
    batches = itertools.islice(shuffled(map(to_arrays, tables), batch_size, buffer, [seed, epoch]), skip, None)
    own: Iterator[Arrays] = ({name: values[rows] for name, values in batch.items()} for batch in batches)
    shape = metadata_format(metadata, folder).feature_shape
    yield from map(_tensors, own if shape is None else with_features(own, paths, shape))


def token_reader(fingerprint: str) -> ReadBatch:
    """The function of a task that reads some token parts: one table of them all, with the columns of training.

    Where the set has features, each row also says where it stands: `part`, the number of its part in the epoch's order,
    and `row`, its number in the part. `first` of the task's item is the number of its first part.
    """

    def read(batch: dict[str, Any]) -> pa.Table:
        tables = []
        for part, path in enumerate(json.loads(batch["paths"][0]), start=int(batch["first"][0])):
            table = read_part(path, fingerprint).drop_columns(["image_id", "view"]).replace_schema_metadata()
            if CHECKSUM in table.column_names:
                table = table.append_column("part", pa.array(np.full(table.num_rows, part, np.int32)))
                table = table.append_column("row", pa.array(np.arange(table.num_rows, dtype=np.int32)))
            tables.append(table)
        return pa.concat_tables(tables)

    return read


def parts_together(metadata: dict[str, Any], rows: int) -> int:
    """How many token parts one task reads: at most `rows` rows and ITEM_BYTES, at least one part.

    metadata: the token set's metadata.json.
    """
    part_rows = max(1, metadata["rows"] // max(1, metadata["parts"]))
    return max(1, min(rows, ITEM_BYTES // (5 * metadata["positions"])) // part_rows)


# ---- both ----


def _in_order(items: list[dict[str, Any]], read: ReadBatch, rows: int, reader: Mapping[str, Any]) -> Iterator[pa.Table]:
    """Items read by Ray Data tasks, one block per item, as tables of exactly `rows` rows in the items' order."""
    if not items:
        raise DataError("nothing to read: the data set has no parts")
    dataset = blocks(items).map_batches(read, batch_size=1, zero_copy_batch=True, **reader)
    dataset.context.execution_options.preserve_order = True  # of this data set alone
    dataset.context.enable_progress_bars = False  # the training loop has its own
    yield from dataset.iter_batches(batch_size=rows, batch_format="pyarrow", prefetch_batches=1, drop_last=False)


def shuffled(
    chunks: Iterable[Arrays], batch_size: int, keep: int, seed: list[int]
) -> Generator[Arrays, None, Arrays | None]:
    """Batches of `batch_size` rows in random order: each chunk is mixed with the `keep` rows before it.

    Returns the last short batch. The result follows from the rows, the chunks' sizes and the seed.
    """
    rng = np.random.default_rng(seed)
    held: Arrays | None = None
    for chunk in chunks:
        pool = chunk if held is None else {name: np.concatenate((held[name], chunk[name])) for name in chunk}
        count = len(pool["labels"])
        order = rng.permutation(count)
        give = max(0, count - keep) // batch_size * batch_size
        for start in range(0, give, batch_size):
            rows = order[start : start + batch_size]
            yield {name: values[rows] for name, values in pool.items()}
        held = {name: values[order[give:]] for name, values in pool.items()}
    if held is None:
        return None
    whole = len(held["labels"]) // batch_size * batch_size
    for start in range(0, whole, batch_size):
        yield {name: values[start : start + batch_size] for name, values in held.items()}
    return {name: values[whole:] for name, values in held.items()}


def _tensors(batch: Arrays) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in batch.items()}
