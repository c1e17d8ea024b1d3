"""Tokenize an image set: images -> granularity tokens in Parquet, by Ray Data.

    python pipelines/build_tokens.py --config conf/fashion_mnist.yaml key=value ...

A row of the stream is a (unit, view): reading tasks decode and crop its images on CPUs, tokenizer actors (as many as
cluster.encoders) encode them, writing tasks put one Parquet part each. A part that is there already is not made again,
so a job that was stopped goes on where it was.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from nvg import config as configuration
from nvg.cluster import actors, blocks, progress, start_ray
from nvg.config import Config
from nvg.data import BrokenImage, ImageSource, open_source
from nvg.data.images import to_float
from nvg.data.stream import read_pieces
from nvg.data.tokens import TokenFormat, finish, part_files, part_name, read_footers, write_part
from nvg.errors import ConfigError
from pipelines.command_line import parse_config
from pipelines.steps import ERRORS, already, claimed, plan, require

WRITER_CPUS = 0.25  # a writing task waits for storage more than it computes
MOST_CLASSES = 2**15  # a label is an int16
CLUSTER_DISTANCES = 2**18  # of latents that are clustered together: 1,024 images of 16 positions, 4 of 256
# What of the data section decides on the rows of a part, besides the images themselves.
PIXEL_KEYS = ("image_size", "channels", "crop_scale", "flip", "unit_images", "limit")


class Encode:
    """A tokenizer actor: rows of images to rows of tokens, with the seconds of each part."""

    def __init__(self, config: Config, tokenizer_folder: str) -> None:
        import ray

        from nvg.artifacts.models import load_tokenizer

        self.batch = config.cluster.encode_batch
        self.device = torch.device("cuda" if config.cluster.use_gpu else "cpu")
        torch.set_num_threads(config.cluster.threads_per_worker or max(1, round(config.cluster.cpus_per_worker)))
        self.tokenizer = load_tokenizer(tokenizer_folder).to(self.device)
        self.node = ray.get_runtime_context().get_node_id() if ray.is_initialized() else ""
        self.features = None
        if config.repa.weights is not None:
            from nvg.frozen.dinov2 import load_dinov2

            self.features = load_dinov2(config.repa.weights, feature_width=config.repa.feature_width).to(self.device)

    def _clock(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    @torch.inference_mode()
    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        size, channels = self.tokenizer.config.image_size, self.tokenizer.config.channels
        images = np.frombuffer(row.pop("images"), np.uint8).reshape(-1, size, size, channels)
        latents, content, structure, features = [], [], [], []
        seconds = dict.fromkeys(("encoder", "clustering", "quantization", "features"), 0.0)
        for start in range(0, len(images), self.batch):
            begun = self._clock()
            batch = to_float(images[start : start + self.batch].copy()).to(self.device)
            latents.append(self.tokenizer.latents(batch))
            encoded = self._clock()
            if self.features is not None:
                features.append(self.features(batch, self.tokenizer.config.grid).cpu().numpy().astype(np.float16))
            seconds["encoder"] += encoded - begun
            seconds["features"] += self._clock() - encoded
        quantizer = self.tokenizer.quantizer
        # Small latents are clustered by many at once: what a kernel takes to start is then a small part.
        many = max(self.batch, CLUSTER_DISTANCES // self.tokenizer.config.positions**2)
        for some in torch.cat(latents).split(many) if latents else ():
            begun = self._clock()
            codes = quantizer.structure_codes(some)
            clustered = self._clock()
            sequence = quantizer.tokenize(some, codes)
            quantized = self._clock()
            structure.append(codes.cpu().numpy().astype(np.uint16))
            content.append(sequence.flat_content().cpu().numpy().astype(np.uint16))
            seconds["clustering"] += clustered - begun
            seconds["quantization"] += quantized - clustered
        row["content"] = b"".join(array.tobytes() for array in content)
        row["structure"] = b"".join(array.tobytes() for array in structure)
        row["features"] = b"".join(array.tobytes() for array in features)
        return row | {f"seconds_{name}": value for name, value in seconds.items()} | {"node": self.node}


def build_tokens(config: Config, tokenizer_folder: str, output_folder: str) -> dict[str, Any]:
    """Tokenize all training images into `output_folder` (path or URL); returns what its metadata.json holds.

    Raises DataError when no image can be read, or when the folder holds parts of another tokenizer or other images;
    ConfigError when the tokenizer is of another configuration.
    """
    import ray

    begun = time.time()
    data = config.data
    source = open_source(data, "train")
    form = token_format(config, tokenizer_folder, source)
    there = part_files(output_folder)
    read_footers(
        [path for paths in there.values() for path in paths], form, output_folder
    )  # of an interrupted job: only ours
    wanted = {(number, view) for number in range(len(source.units)) for view in range(data.views)}
    todo = [
        {"unit": number, "view": view}
        for view, number in sorted((view, number) for number, view in wanted - set(there))
    ]
    if there:
        print(f"tokens: {len(there)} units are there, {len(todo)} to make", flush=True)
    reader = source.reader()
    # The listing once in the object store, which readers look into without a copy, and not a piece of it in every row:
    # of 1.28 million names in 10 views the driver would hold half a gigabyte.
    units = ray.put(pa.array([json.dumps(unit) for unit in source.units], pa.large_string())) if todo else None

    def read(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
        unit = json.loads(ray.get(units)[row["unit"]].as_py())
        pieces = read_pieces(reader, unit, data, row["view"], config.seed)
        started = time.perf_counter()
        for piece in pieces:
            about = {"ids": piece.ids, "labels": piece.labels, "broken": [asdict(item) for item in piece.broken]}
            yield {
                "name": part_name(row["unit"], row["view"], piece.number, piece.last),
                "view": row["view"],
                "last": piece.last,
                "images": piece.images.tobytes(),
                "about": json.dumps(about),
                "seconds_reading": time.perf_counter() - started,
            }
            started = time.perf_counter()

    def write(row: dict[str, Any]) -> dict[str, Any]:
        about = json.loads(row["about"])
        count = len(about["ids"])
        columns = {"image_id": about["ids"], "label": about["labels"]}
        for name, dtype, width in (
            ("content", np.uint16, 2 * form.positions - 1),
            ("structure", np.uint16, form.positions),
            ("features", np.float16, form.positions * (form.feature_width or 0)),
        ):
            columns[name] = np.frombuffer(row[name], dtype).reshape(count, width)
        broken = [BrokenImage(**item) for item in about["broken"]]
        started = time.perf_counter()
        size = write_part(output_folder, form, row["name"], int(row["view"]), columns, broken)
        seconds = {name: value for name, value in row.items() if name.startswith("seconds_")}
        seconds["seconds_writing"] = time.perf_counter() - started
        done = {"units": int(row["last"]), "images": count, "broken": len(broken), "bytes": size}
        return {"node": row["node"], **done, **seconds}

    totals: dict[str, float] = {}
    by_node: dict[str, int] = {}
    if todo:
        cluster = config.cluster
        encode: Any = Encode
        # What a reading task holds: the images of a piece, and their copy as bytes. Where the CPUs of readers and
        # encoders are equal it also keeps Ray Data from fusing both into one operator, which would read in the
        # encoder's process, one image after the other.
        piece_bytes = 2 * data.unit_images * data.image_size**2 * data.channels
        _check_store(config, piece_bytes)
        rows = (
            blocks(todo)
            .flat_map(read, memory=piece_bytes, **cluster.reader)
            .map(
                encode,
                fn_constructor_args=(config, tokenizer_folder),
                compute=actors(cluster),
                **cluster.actor,
            )
            .map(write, num_cpus=WRITER_CPUS)
        )
        bar = progress(len(todo), "tokens", "part")
        for row in rows.iter_rows():
            node = row.pop("node")
            by_node[node] = by_node.get(node, 0) + row["images"]
            for name, value in row.items():
                totals[name] = totals.get(name, 0) + value
            bar.update(row["units"])
        bar.close()
    seconds = time.time() - begun
    shares = {name.removeprefix("seconds_"): round(totals[name], 4) for name in totals if name.startswith("seconds_")}
    about = finish(
        output_folder,
        form,
        wanted,
        {
            "views": data.views,
            "data_fingerprint": source.fingerprint(),
            "seconds": round(seconds, 1),
            "seconds_by_part": shares,
            "images_per_second": round(totals.get("images", 0) / seconds, 1),
            "images_by_node": by_node,  # where this run encoded them, by Ray's node id
        },
    )
    print(summary(about, output_folder), flush=True)
    return about


def token_format(config: Config, tokenizer_folder: str, source: ImageSource) -> TokenFormat:
    """What the parts will be made of. Raises ConfigError when the tokenizer is of another configuration."""
    from nvg.artifacts.models import model_config, tokenizer_fingerprint

    trained = model_config(tokenizer_folder).tokenizer
    if trained != config.tokenizer:
        raise ConfigError(
            f"{tokenizer_folder} was trained with {trained}, and the configuration says {config.tokenizer}: change "
            "the tokenizer section, or train a tokenizer for it"
        )
    if config.data.num_classes > MOST_CLASSES:
        raise ConfigError(f"data.num_classes={config.data.num_classes}: a token part holds labels below {MOST_CLASSES}")
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


def _check_store(config: Config, piece_bytes: int) -> None:
    """Say what Ray Data would do without a word: write images to disk, or wait, where those that readers make and
    encoders take are more than the object store holds."""
    import ray

    cluster, resources = config.cluster, ray.cluster_resources()
    there, store = resources.get("CPU", 0), resources.get("object_store_memory", 0)
    readers = max(1, int((there - cluster.encoders * cluster.cpus_per_worker) // cluster.cpus_per_reader))
    images, wanted = config.data.unit_images, piece_bytes * (readers + cluster.encoders)
    if wanted > store:
        print(
            f"warning: {readers} readers and {cluster.encoders} encoders with two pieces each of data.unit_images="
            f"{images} images are {wanted / 1e9:.1f} GB, and Ray's object store has {store / 1e9:.1f} GB: readers will "
            f"wait, or images go to disk; set data.unit_images={max(1, int(images * store / wanted))}, or give a Ray "
            "that is started here a larger cluster.object_store_gb",
            flush=True,
        )


def summary(about: dict[str, Any], folder: str) -> str:
    """One line on a finished token set."""
    total = sum(about["seconds_by_part"].values()) or 1.0
    shares = ", ".join(f"{name} {value / total:.1%}" for name, value in about["seconds_by_part"].items())
    quarantine = (
        f"; {about['quarantined']} broken images in {folder}/quarantine.parquet" if about["quarantined"] else ""
    )
    nodes = f" on {len(about['images_by_node'])} nodes" if len(about["images_by_node"]) > 1 else ""
    return (
        f"tokens: {about['images']} images x {about['views']} views in {about['parts']} parts, {about['seconds']} s, "
        f"{about['images_per_second']} images/s{nodes} ({shares}){quarantine or '; 0 broken images'}"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Images -> token Parquet, unless it is there already. argv: the command line without the program."""
    arguments = sys.argv[1:] if argv is None else argv
    config = parse_config(arguments, __doc__.split("\n")[0])
    try:
        artifacts = plan(config)
        if already(artifacts["tokens"]):
            return
        tokenizer = require(artifacts["tokenizer"], arguments)
        with claimed(artifacts["tokens"]):
            start_ray(config.cluster)
            build_tokens(config, tokenizer, artifacts["tokens"].folder)
    except ERRORS as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
