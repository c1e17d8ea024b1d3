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
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from nvg import storage
from nvg.config import Config, ConfigError
from nvg.data import BrokenImage, DataError, open_source
from nvg.data.images import to_float
from nvg.data.stream import read_view
from nvg.data.tokens import TokenFormat, finish, part_format, parts, write_part
from pipelines import common

WRITER_CPUS = 0.25  # a writing task waits for storage more than it computes


class Encode:
    """A tokenizer actor: rows of images to rows of tokens, with the seconds of each part."""

    def __init__(self, config: Config, tokenizer_folder: str) -> None:
        from nvg.training.checkpoint import load_tokenizer

        self.batch = config.cluster.encode_batch
        self.device = torch.device("cuda" if config.cluster.use_gpu else "cpu")
        torch.set_num_threads(config.cluster.threads_per_worker or max(1, round(config.cluster.cpus_per_worker)))
        self.tokenizer = load_tokenizer(tokenizer_folder).to(self.device)
        self.features = None
        if config.repa.weights is not None:
            from nvg.autoencoder.features import load_dinov2

            self.features = load_dinov2(config.repa.weights).to(self.device)

    def _clock(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    @torch.inference_mode()
    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        from nvg.granularity import structure_codes

        size, channels = self.tokenizer.config.image_size, self.tokenizer.config.channels
        images = np.frombuffer(row.pop("images"), np.uint8).reshape(-1, size, size, channels)
        content, structure, features = [], [], []
        seconds = dict.fromkeys(("encoder", "clustering", "quantization", "features"), 0.0)
        for start in range(0, len(images), self.batch):
            begun = self._clock()
            batch = to_float(images[start : start + self.batch].copy()).to(self.device)
            latents = self.tokenizer.latents(batch)
            encoded = self._clock()
            codes = structure_codes(latents)
            clustered = self._clock()
            sequence = self.tokenizer.quantizer.tokenize(latents, codes)
            quantized = self._clock()
            structure.append(codes.cpu().numpy().astype(np.uint16))
            content.append(sequence.flat_content().cpu().numpy().astype(np.uint16))
            if self.features is not None:
                features.append(self.features(batch, self.tokenizer.config.grid).cpu().numpy().astype(np.float16))
            seconds["encoder"] += encoded - begun
            seconds["clustering"] += clustered - encoded
            seconds["quantization"] += quantized - clustered
            seconds["features"] += self._clock() - quantized
        row["content"] = b"".join(array.tobytes() for array in content)
        row["structure"] = b"".join(array.tobytes() for array in structure)
        row["features"] = b"".join(array.tobytes() for array in features)
        return row | {f"seconds_{name}": value for name, value in seconds.items()}


def build_tokens(config: Config, tokenizer_folder: str, output_folder: str) -> dict[str, Any]:
    """Tokenize all training images into `output_folder` (path or URL); returns what its metadata.json holds.

    Raises DataError when no image can be read, or when the folder holds parts of another tokenizer.
    """
    import ray

    begun = time.time()
    data = config.data
    source = open_source(data, "train")
    tokenizer = storage.read_json(storage.join(tokenizer_folder, storage.LAST_FILE))
    form = TokenFormat(
        fingerprint=tokenizer["fingerprint"],
        last_stage=config.tokenizer.last_stage,
        positions=config.tokenizer.positions,
        codebook_size=config.tokenizer.codebook_size,
        class_names=source.class_names,
        feature_width=config.repa.feature_width if config.repa.weights is not None else None,
    )
    there = parts(output_folder)
    _check_leftovers(there, form)
    todo = [
        {"unit": number, "view": view, "what": json.dumps(unit)}
        for view in range(data.views)
        for number, unit in enumerate(source.units)
        if (number, view) not in there
    ]
    if there:
        print(f"tokens: {len(there)} parts are there, {len(todo)} to make", flush=True)
    reader = source.reader()

    def read(row: dict[str, Any]) -> dict[str, Any]:
        started = time.perf_counter()
        images, ids, labels, broken = read_view(reader, json.loads(row["what"]), data, row["view"], config.seed)
        return {
            "unit": row["unit"],
            "view": row["view"],
            "images": images.tobytes(),
            "about": json.dumps({"ids": ids, "labels": labels, "broken": [asdict(item) for item in broken]}),
            "seconds_reading": time.perf_counter() - started,
        }

    def write(row: dict[str, Any]) -> dict[str, Any]:
        about = json.loads(row["about"])
        count = len(about["ids"])
        columns = {
            "image_id": about["ids"],
            "label": about["labels"],
            "content": np.frombuffer(row["content"], np.uint16).reshape(count, -1),
            "structure": np.frombuffer(row["structure"], np.uint16).reshape(count, -1),
            "features": np.frombuffer(row["features"], np.float16).reshape(count, -1) if count else np.zeros((0, 1)),
        }
        broken = [BrokenImage(**item) for item in about["broken"]]
        size = write_part(output_folder, form, int(row["unit"]), int(row["view"]), columns, broken)
        seconds = {name: value for name, value in row.items() if name.startswith("seconds_")}
        return {"images": count, "broken": len(broken), "bytes": size, **seconds}

    totals: dict[str, float] = {}
    if todo:
        cluster = config.cluster
        actor: dict[str, Any] = {"num_cpus": cluster.cpus_per_worker} | ({"num_gpus": 1} if cluster.use_gpu else {})
        rows = (
            ray.data.from_items(todo, override_num_blocks=len(todo))
            .map(read, num_cpus=cluster.cpus_per_reader)
            .map(
                Encode,
                fn_constructor_args=(config, tokenizer_folder),
                compute=ray.data.ActorPoolStrategy(size=cluster.encoders),
                **actor,
            )
            .map(write, num_cpus=WRITER_CPUS)
        )
        bar = common.progress(len(todo), "tokens", "part")
        for row in rows.iter_rows():
            for name, value in row.items():
                totals[name] = totals.get(name, 0) + value
            bar.update(1)
        bar.close()
    seconds = time.time() - begun
    shares = {name.removeprefix("seconds_"): round(totals[name], 2) for name in totals if name.startswith("seconds_")}
    about = finish(
        output_folder,
        form,
        {
            "views": data.views,
            "data_fingerprint": source.fingerprint(),
            "seconds": round(seconds, 1),
            "seconds_by_part": shares,
            "images_per_second": round(totals.get("images", 0) / seconds, 1),
        },
    )
    print(summary(about, output_folder), flush=True)
    return about


def _check_leftovers(there: dict[tuple[int, int], str], form: TokenFormat) -> None:
    """Parts of an interrupted job are gone on from only when they are of this very format."""
    import pyarrow.parquet as pq

    for path in list(there.values())[:1]:
        with storage.open(path) as file:
            found = part_format(pq.read_schema(file), path)
        if found != form:
            raise DataError(f"{path} is of another tokenizer or data set: remove its folder, or give another output")


def summary(about: dict[str, Any], folder: str) -> str:
    """One line on a finished token set."""
    total = sum(about["seconds_by_part"].values()) or 1.0
    shares = ", ".join(f"{name} {value / total:.1%}" for name, value in about["seconds_by_part"].items())
    quarantine = (
        f"; {about['quarantined']} broken images in {folder}/quarantine.parquet" if about["quarantined"] else ""
    )
    return (
        f"tokens: {about['images']} images x {about['views']} views in {about['parts']} parts, {about['seconds']} s, "
        f"{about['images_per_second']} images/s ({shares}){quarantine or '; 0 broken images'}"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Images -> token Parquet, unless it is there already. argv: the command line without the program."""
    arguments = sys.argv[1:] if argv is None else argv
    config = common.parse_config(arguments, __doc__.split("\n")[0])
    try:
        artifacts = common.plan(config)
        if common.already(artifacts["tokens"]):
            return
        tokenizer = common.require(artifacts["tokenizer"], arguments)
        common.start_ray(config)
        build_tokens(config, tokenizer, artifacts["tokens"].folder)
    except (ConfigError, DataError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
