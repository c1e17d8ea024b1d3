"""Alignment features: a NumPy file beside each token part, which training reads row by row.

A row of features is 300 times as large as its tokens (393 kB at L = 256, D = 768), so a training worker, which reads
the tokens of all workers, fetches the features of its own rows alone. Rows are of one size: the place of a row follows
from its number, and one request reads it. The part has the CRC-32 of each row's features.

    part-000003-view0.parquet   the tokens of n images, and the checksums
    part-000003-view0.npy       float16 (n, L, D), for `numpy.load`
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from nvg import storage
from nvg.errors import DataError

CHECKSUM = "features_crc32"  # a column of the part
HEADER_BYTES = 128
FETCHERS = 16  # threads of a worker, which wait for the store more than they compute
AHEAD_BYTES = 256 * 2**20  # of features that are on their way to a worker
AHEAD_BATCHES = 8


def features_file(part: str) -> str:
    """The file of a part's features."""
    return f"{part.removesuffix('.parquet')}.npy"


def write_features(part: str, features: np.ndarray, shape: tuple[int, int]) -> int:
    """Write the features (n, L * D) of a part's rows, atomically; returns the bytes. shape: (L, D)."""
    rows = np.ascontiguousarray(features, "<f2").reshape(-1, *shape)
    storage.write_bytes(features_file(part), _header(rows.shape) + rows.tobytes())
    return HEADER_BYTES + rows.nbytes


def checksums(features: np.ndarray) -> np.ndarray:
    """The CRC-32 of each row of features (n, ...): uint32 (n,)."""
    return np.array([zlib.crc32(row) for row in np.ascontiguousarray(features, "<f2")], np.uint32)


def _header(shape: tuple[int, ...]) -> bytes:
    """The header of NumPy's format 1.0. NumPy's own is as long as its version likes, and rows must have their place."""
    text = f"{{'descr': '<f2', 'fortran_order': False, 'shape': {shape}}}"
    start = b"\x93NUMPY\x01\x00"
    length = HEADER_BYTES - len(start) - 2
    return start + length.to_bytes(2, "little") + text.ljust(length - 1).encode() + b"\n"


def read_features(part: str, first: int, expected: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Features of consecutive rows of a part, from row `first` on, in one request: float16 (n, L, D).

    expected: the checksums (n,) that the part has of them. Raises DataError where the file is missing, or holds others.
    """
    path, size = features_file(part), 2 * shape[0] * shape[1]
    try:
        data = storage.read_range(path, HEADER_BYTES + first * size, len(expected) * size)
    except FileNotFoundError:
        raise DataError(f"{path} is missing: remove {part} and run build_tokens again") from None
    whole = len(data) == len(expected) * size
    rows = np.frombuffer(data, "<f2").reshape(-1, *shape) if whole else np.zeros((0, *shape), "<f2")
    if not whole or (checksums(rows) != expected).any():
        raise DataError(f"{path} is damaged: its rows are not those of {part}: remove both and run build_tokens again")
    return rows


def with_features(
    batches: Iterable[Mapping[str, np.ndarray]], parts: Sequence[str], shape: tuple[int, int]
) -> Iterator[dict[str, np.ndarray]]:
    """The same batches with the features of their rows: float16 (b, L, D).

    batches: with columns `part` (the number of the row's part among `parts`), `row` (its number in the part) and the
    checksum, which are left out of the result. Rows of the next batches are fetched beside, AHEAD_BYTES at most. An
    error comes at its batch.
    """
    pool = ThreadPoolExecutor(FETCHERS, thread_name_prefix="features")
    waiting: deque[tuple[dict[str, np.ndarray], list[Future[None]]]] = deque()

    def fetch(target: np.ndarray, part: int, row: int, checksum: np.uint32) -> None:
        target[:] = read_features(parts[part], row, np.array([checksum]), shape)[0]

    def start(batch: Mapping[str, np.ndarray]) -> None:
        result = {name: values for name, values in batch.items() if name not in ("part", "row", CHECKSUM)}
        features = result["features"] = np.empty((len(batch["row"]), *shape), np.float16)
        rows = zip(features, batch["part"].tolist(), batch["row"].tolist(), batch[CHECKSUM], strict=True)
        waiting.append((result, [pool.submit(fetch, *row) for row in rows]))

    def next_batch() -> dict[str, np.ndarray]:
        batch, fetched = waiting.popleft()
        for row in fetched:
            row.result()
        return batch

    try:
        for batch in batches:
            start(batch)
            size = waiting[-1][0]["features"].nbytes
            if len(waiting) > max(1, min(AHEAD_BATCHES, AHEAD_BYTES // max(1, size))):
                yield next_batch()
        while waiting:
            yield next_batch()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
