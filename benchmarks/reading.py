"""How fast tokens are read: rows per second, of Parquet parts of random tokens on the local disk.

A row is an image: 1.3 kB at L = 256 (ImageNet), 81 bytes at L = 16 (the demo) before compression, in parts of 512
rows, read many times, so from the page cache. parts: `read_part` and `to_arrays` alone, in one thread. stream: the
batches of 256 that a training worker gets, shuffled, through Ray Data with two CPUs, its start included
(`nvg.data.stream.token_batches`). writing: `write_part`, compression included. Medians over rounds.
"""

from __future__ import annotations

import tempfile

import numpy as np

from benchmarks.common import TableRow, median_seconds, say
from nvg.cluster import start_ray
from nvg.config import ClusterConfig
from nvg.data.stream import token_batches
from nvg.data.tokens import TokenFormat, finish, part_files, part_name, read_part, to_arrays, write_part

PART_ROWS = 512
FINGERPRINT = "benchmark"


def run(size: str) -> list[TableRow]:
    """The rows of both kinds of tokens; smoke: of few small ones."""
    import ray

    started = not ray.is_initialized()
    start_ray(ClusterConfig(local_cpus=2, object_store_gb=0.5))
    full = size == "full"
    try:
        return [measure(positions, 128, 5) for positions in (16, 256)] if full else [measure(16, 4, 1)]
    finally:
        if started:
            ray.shutdown()


def measure(positions: int, units: int, rounds: int) -> TableRow:
    """The row of tokens of L positions, of `units` parts."""
    say(f"reading: L = {positions}")
    last_stage, entries = int(np.log2(positions)), 4096 if positions >= 256 else 512
    form = TokenFormat(FINGERPRINT, last_stage, positions, entries, ["one", "two"])
    rng = np.random.default_rng(0)
    columns = {
        "image_id": [f"image-{index:06d}" for index in range(PART_ROWS)],
        "label": rng.integers(0, 2, PART_ROWS),
        "content": rng.integers(0, entries, (PART_ROWS, 2 * positions - 1)),
        "structure": np.stack([rng.permutation(positions) for _ in range(PART_ROWS)]),
    }
    with tempfile.TemporaryDirectory() as folder:
        size = sum(write_part(folder, form, part_name(unit, 0), 0, columns, []) for unit in range(units))
        finish(folder, form, {(unit, 0) for unit in range(units)}, {"views": 1})
        files = [path for pieces in part_files(folder).values() for path in pieces]

        def stream() -> None:
            batches = token_batches(folder, epoch=0, batch_size=256, seed=0, shuffle_rows=16384)
            rows = sum(len(batch["labels"]) for batch in batches)
            assert rows == units * PART_ROWS, "an epoch left rows out"

        variants = {
            "parts": lambda: [to_arrays(read_part(path, FINGERPRINT)) for path in files],
            "stream": stream,
            "writing": lambda: [write_part(folder, form, part_name(0, 0), 0, columns, []) for _ in range(units)],
        }
        seconds = median_seconds(variants, rounds)
    rows = units * PART_ROWS
    values = {"rows": rows, "bytes a row": size / rows, "rounds": rounds}
    return TableRow(f"L = {positions}", values | {f"{name}, rows/s": rows / each for name, each in seconds.items()})
