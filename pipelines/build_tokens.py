"""Tokenize an image set: images -> granularity tokens in Parquet, by Ray Data.

    nvg build-tokens --config conf/fashion_mnist.yaml

A row of the stream is a (unit, view): reading tasks decode and crop its images on CPUs (`Read`), cluster.encoders
tokenizer actors encode them (`Encode`), writing tasks write one Parquet part each (`Write`). Parts that exist are not
made again, so a job that was stopped goes on where it was.
"""

from __future__ import annotations

import json
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from nvg import config as configuration
from nvg.cluster import actors, blocks, device_of, set_threads, warn_of_small_store
from nvg.config import Config
from nvg.console import progress, say
from nvg.data import BrokenImage, ImageSource, open_source
from nvg.data.images import to_float
from nvg.data.stream import read_pieces
from nvg.data.tokens import TokenFormat, UnitView, finish, part_files, part_name, read_footers, write_part
from nvg.errors import ConfigError
from nvg.precision import set_precision
from pipelines.job import run_job

WRITER_CPUS = 0.25  # a writing task waits for storage more than it computes
# Of latents that are clustered together: on a CPU 1,024 images of 16 positions, 4 of 256; on a GPU 1,024 of 256.
CLUSTER_DISTANCES = {"cpu": 2**18, "cuda": 2**26}
# Rows that an actor works on at once, in threads: on a GPU the next row's work is there when one's ends.
ROWS_AT_ONCE = {"cpu": 1, "cuda": 2}
# The keys of the data section that decide on the rows of a part, besides the images themselves.
PIXEL_KEYS = ("image_size", "channels", "resize", "crop_scale", "flip", "unit_images", "limit")


def build_tokens(config: Config, tokenizer_folder: str, output_folder: str) -> dict[str, Any]:
    """Tokenize all training images into `output_folder` (path or URL); returns the content of its metadata.json.

    Raises DataError when no image can be read, or when the folder holds parts of another tokenizer or other images;
    ConfigError when the tokenizer is of another configuration.
    """
    start = time.time()
    source = open_source(config.data, "train")
    form = token_format(config, tokenizer_folder, source)
    existing = part_files(output_folder)
    read_footers([path for paths in existing.values() for path in paths], form, output_folder)  # refuses other parts
    expected = {(unit, view) for unit in range(len(source.units)) for view in range(config.data.views)}
    missing = sorted(expected - set(existing), key=lambda unit_view: (unit_view[1], unit_view[0]))
    if existing:
        say(f"tokens: {len(existing)} units are there, {len(missing)} to make")
    totals = Totals()
    if missing:
        bar = progress(len(missing), "tokens", "part")
        for row in written_parts(config, source, missing, tokenizer_folder, output_folder, form):
            totals.add(row)
            bar.update(row["units"])
        bar.close()
    metadata = finish(
        output_folder,
        form,
        expected,
        {"views": config.data.views, "data_fingerprint": source.fingerprint()} | totals.metadata(time.time() - start),
    )
    say(summary(metadata, output_folder))
    return metadata


# ---- the way of a row: read, encode, write ----


def written_parts(
    config: Config,
    source: ImageSource,
    missing: Sequence[UnitView],
    tokenizer_folder: str,
    output_folder: str,
    form: TokenFormat,
) -> Iterator[dict[str, Any]]:
    """Make the missing parts on the running Ray; gives a row of figures per part (see `Write`)."""
    cluster, data = config.cluster, config.data
    # A reading task holds the images of a piece, and their copy as bytes. Where the CPUs of readers and encoders are
    # equal the request for memory also keeps Ray Data from fusing both into one operator, which would read in the
    # encoder's process, one image after the other.
    piece_bytes = 2 * data.unit_images * data.image_size**2 * data.channels
    warn_of_small_store(config, piece_bytes)
    encode: Any = Encode  # a class, for an actor
    pool = actors(cluster, calls=ROWS_AT_ONCE[device_of(cluster).type])
    return (
        blocks([{"unit": unit, "view": view} for unit, view in missing])
        .flat_map(Read(config, source), memory=piece_bytes, **cluster.reader)
        .map(encode, fn_constructor_args=(config, tokenizer_folder), compute=pool, **cluster.actor)
        .map(Write(output_folder, form), num_cpus=WRITER_CPUS)
        .iter_rows()
    )


class Read:
    """The work of a reading task: a unit and view to its pieces of images."""

    def __init__(self, config: Config, source: ImageSource) -> None:
        import ray

        self.config, self.reader = config, source.reader()
        # The listing once in the object store, which readers look into without a copy, and not a piece of it in every
        # row: of 1.28 million names in 10 views the driver would hold half a gigabyte.
        self.units = ray.put(pa.array([json.dumps(unit) for unit in source.units], pa.large_string()))

    def __call__(self, row: dict[str, Any]) -> Iterator[dict[str, Any]]:
        import ray

        unit = json.loads(ray.get(self.units)[row["unit"]].as_py())
        pieces = read_pieces(self.reader, unit, self.config.data, row["view"], self.config.seed)
        start = time.perf_counter()
        for piece in pieces:
            records = {"ids": piece.ids, "labels": piece.labels, "broken": [asdict(item) for item in piece.broken]}
            yield {
                "name": part_name(row["unit"], row["view"], piece.number, piece.last),
                "view": row["view"],
                "last": piece.last,
                "images": piece.images.tobytes(),
                "records": json.dumps(records),
                "seconds_reading": time.perf_counter() - start,
            }
            start = time.perf_counter()


class Encode:
    """A tokenizer actor: a row of images to a row of tokens, with the seconds of each part of the work.

    Two threads may call it. One row's work is started at a time; while a thread waits for the GPU's results, the other
    starts its row. Each call returns its own row's tokens, so nothing is held back for an actor that dies.
    """

    def __init__(self, config: Config, tokenizer_folder: str) -> None:
        import ray

        from nvg.artifacts.models import load_tokenizer

        self.starting = threading.Lock()  # held while a row's work is started, not while its results are waited for
        self.batch = config.cluster.encode_batch
        self.device = device_of(config.cluster)
        set_threads(config.cluster)
        set_precision(config.precision, self.device)
        self.tokenizer = load_tokenizer(tokenizer_folder).to(self.device)
        self.node = ray.get_runtime_context().get_node_id() if ray.is_initialized() else ""
        self.features = None
        if config.repa.weights is not None:
            from nvg.frozen.dinov2 import load_dinov2

            self.features = load_dinov2(config.repa.weights, feature_width=config.repa.feature_width).to(self.device)

    @torch.inference_mode()
    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        size, channels = self.tokenizer.config.image_size, self.tokenizer.config.channels
        images = np.frombuffer(row.pop("images"), np.uint8).reshape(-1, size, size, channels)
        with self.starting:
            clock = Stopwatch(self.device)
            latents, features = self._look(images, clock)
            content, structure = self._tokenize(latents, clock)
        seconds = clock.seconds(("encoder", "clustering", "quantization", "features"))  # waits: all is there
        row |= {
            "content": _bytes(content, np.uint16),
            "structure": _bytes(structure, np.uint16),
            "features": _bytes(features, np.float16),
        }
        return row | {f"seconds_{name}": value for name, value in seconds.items()} | {"node": self.node}

    def _look(self, images: np.ndarray, clock: Stopwatch) -> tuple[list[Tensor], list[Tensor]]:
        """Latents and, for alignment, features of the images, batch by batch; the features are on their way here."""
        latents, features = [], []
        for first in range(0, len(images), self.batch):
            batch = torch.from_numpy(images[first : first + self.batch].copy())
            if self.device.type == "cuda":  # a GPU copies from page-locked memory while the host goes on
                batch = batch.pin_memory().to(self.device, non_blocking=True)
            pixels = to_float(batch)
            latents.append(self.tokenizer.latents(pixels))
            clock.lap("encoder")
            if self.features is not None:
                features.append(self._to_host(self.features(pixels, self.tokenizer.config.grid)))
                clock.lap("features")
        return latents, features

    def _tokenize(self, latents: list[Tensor], clock: Stopwatch) -> tuple[list[Tensor], list[Tensor]]:
        """Content tokens of all stages and structure codes, batch by batch, on their way here."""
        quantizer = self.tokenizer.quantizer
        # Many latents are clustered at once: the start of a kernel is a small part, and a GPU has enough to do.
        together = max(self.batch, CLUSTER_DISTANCES[self.device.type] // self.tokenizer.config.positions**2)
        content, structure = [], []
        for batch in torch.cat(latents).split(together) if latents else ():
            codes = quantizer.structure_codes(batch)
            clock.lap("clustering")
            content.append(self._to_host(quantizer.tokenize(batch, codes).flat_content()))
            structure.append(self._to_host(codes))
            clock.lap("quantization")
        return content, structure

    @staticmethod
    def _to_host(values: Tensor) -> Tensor:
        """A copy into page-locked memory, there once the stopwatch is read; on a CPU the tensor itself."""
        return values.to("cpu", non_blocking=True)


class Stopwatch:
    """Seconds of each part of a work. On a GPU it has the GPU's own time, and nothing waits before it is read."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.names: list[str] = []
        self.marks = [self._mark()]

    def _mark(self) -> Any:
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def lap(self, name: str) -> None:
        """The work since the last lap was this part's."""
        self.names.append(name)
        self.marks.append(self._mark())

    def seconds(self, names: Sequence[str]) -> dict[str, float]:
        """The sum of each part's laps, 0 where it had none. Waits until the work before the last lap is done, and not
        for work that another thread started after it."""
        total = dict.fromkeys(names, 0.0)
        if self.cuda:
            self.marks[-1].synchronize()
        for name, (start, end) in zip(self.names, pairwise(self.marks), strict=True):
            total[name] += start.elapsed_time(end) / 1e3 if self.cuda else end - start
        return total


def _bytes(values: Sequence[Tensor], dtype: type[np.generic]) -> bytes:
    return b"".join(one.numpy().astype(dtype).tobytes() for one in values)


class Write:
    """The work of a writing task: a row of tokens to a Parquet part, and a row of figures."""

    def __init__(self, folder: str, form: TokenFormat) -> None:
        self.folder, self.form = folder, form

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Write a part; returns its encoder's node, counts, and the seconds of each part of the work."""
        form, records = self.form, json.loads(row["records"])
        count = len(records["ids"])
        columns = {"image_id": records["ids"], "label": records["labels"]}
        for name, dtype, width in (
            ("content", np.uint16, 2 * form.positions - 1),
            ("structure", np.uint16, form.positions),
            ("features", np.float16, form.positions * (form.feature_width or 0)),
        ):
            columns[name] = np.frombuffer(row[name], dtype).reshape(count, width)
        broken = [BrokenImage(**item) for item in records["broken"]]
        start = time.perf_counter()
        size = write_part(self.folder, form, row["name"], int(row["view"]), columns, broken)
        seconds = {name: value for name, value in row.items() if name.startswith("seconds_")}
        seconds["seconds_writing"] = time.perf_counter() - start
        counts = {"units": int(row["last"]), "images": count, "broken": len(broken), "bytes": size}
        return {"node": row["node"], **counts, **seconds}


# ---- a token set's format and figures ----


class Totals:
    """The figures of all parts that a job made."""

    def __init__(self) -> None:
        self.images_by_node: dict[str, int] = defaultdict(int)
        self.seconds: dict[str, float] = defaultdict(float)  # by part of the work, summed over tasks

    def add(self, row: dict[str, Any]) -> None:
        """Add a row of `Write`."""
        self.images_by_node[row["node"]] += row["images"]
        for name, value in row.items():
            if name.startswith("seconds_"):
                self.seconds[name.removeprefix("seconds_")] += value

    def metadata(self, seconds: float) -> dict[str, Any]:
        """The figures that metadata.json holds of a job that took so many seconds."""
        return {
            "seconds": round(seconds, 1),
            "seconds_by_part": {name: round(value, 4) for name, value in self.seconds.items()},
            "images_per_second": round(sum(self.images_by_node.values()) / seconds, 1),
            "images_by_node": dict(self.images_by_node),  # where this run encoded them, by Ray's node id
        }


def token_format(config: Config, tokenizer_folder: str, source: ImageSource) -> TokenFormat:
    """The format of the parts to be made. Raises ConfigError when the tokenizer is of another configuration."""
    from nvg.artifacts.models import model_config, tokenizer_fingerprint

    trained = model_config(tokenizer_folder).tokenizer
    if trained != config.tokenizer:
        raise ConfigError(
            f"{tokenizer_folder} was trained with {trained}, and the configuration says {config.tokenizer}: change "
            "the tokenizer section, or train a tokenizer for it"
        )
    pixels = {name: value for name, value in asdict(config.data).items() if name in PIXEL_KEYS}
    return TokenFormat(
        fingerprint=tokenizer_fingerprint(tokenizer_folder),
        last_stage=config.tokenizer.last_stage,
        positions=config.tokenizer.positions,
        codebook_size=config.tokenizer.codebook_size,
        class_names=source.class_names,
        feature_width=config.repa.feature_width if config.repa.weights is not None else None,
        source=configuration.digest(source.fingerprint(), pixels, config.seed, config.repa.weights),
    )


def summary(metadata: dict[str, Any], folder: str) -> str:
    """One line on a finished token set."""
    total = sum(metadata["seconds_by_part"].values()) or 1.0
    shares = ", ".join(f"{name} {value / total:.1%}" for name, value in metadata["seconds_by_part"].items())
    broken = metadata["quarantined"]
    quarantine = f"{broken} broken image{'' if broken == 1 else 's'}"
    if broken:
        quarantine += f" in {folder}/quarantine.parquet"
    nodes = f" on {len(metadata['images_by_node'])} nodes" if len(metadata["images_by_node"]) > 1 else ""
    return (
        f"tokens: {metadata['images']} images x {metadata['views']} views in {metadata['parts']} parts, "
        f"{metadata['seconds']} s, {metadata['images_per_second']} images/s{nodes} ({shares}); {quarantine}"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Images -> token Parquet, unless it is there already. argv: the command line without the program."""
    run_job("tokens", argv, __doc__)


if __name__ == "__main__":
    main()
