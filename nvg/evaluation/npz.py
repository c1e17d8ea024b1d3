"""Sets of images as .npz, the way the ADM evaluation suite reads and publishes them: `arr_0`, uint8 (N, H, W, 3)."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

import numpy as np

from nvg.errors import DataError, StorageError


class ImageWriter:
    """Writes a file of `count` images as they come, so that 50,000 of them need not fit in memory.

    Grey images become three equal channels, as the suite expects. Leaving the block with fewer images than announced
    raises ValueError, and the file is removed then and on any other error.
    """

    def __init__(self, path: Path, count: int, size: int) -> None:
        self.path, self.count, self.size = path, count, size
        self.written = 0

    def __enter__(self) -> ImageWriter:
        self._zip = zipfile.ZipFile(self.path, "w", zipfile.ZIP_STORED)
        self._file = self._zip.open("arr_0.npy", "w", force_zip64=True)
        shape = (self.count, self.size, self.size, 3)
        np.lib.format.write_array_header_1_0(
            self._file,  # type: ignore[arg-type]  # any file that can be written to
            {"descr": "|u1", "fortran_order": False, "shape": shape},
        )
        return self

    def add(self, images: np.ndarray) -> None:
        """images: uint8 (n, H, W, 1 or 3)."""
        if images.dtype != np.uint8 or images.shape[1:3] != (self.size, self.size) or images.shape[3] not in (1, 3):
            raise ValueError(f"expected uint8 images (n, {self.size}, {self.size}, 1 or 3), got {images.shape}")
        colour = np.broadcast_to(images, (*images.shape[:3], 3))
        self._file.write(np.ascontiguousarray(colour).data)
        self.written += len(images)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._zip.close()
        if kind is None and self.written == self.count:
            return
        self.path.unlink()
        if kind is None:
            raise ValueError(f"{self.written} images of {self.count} were written")


@dataclass(frozen=True)
class NpzHeader:
    """The contents of a file, without its images."""

    shape: tuple[int, ...] | None  # of the images, (N, H, W, 3), where it has any
    moments: tuple[np.ndarray, np.ndarray] | None  # of `read_moments`
    fingerprint: str  # of names, sizes and checksums of its arrays


def read_header(file: IO[bytes]) -> NpzHeader:
    """Raises DataError for a file that has neither images nor moments, or has them in another form."""
    with _named("no .npz file of images or moments"):
        with zipfile.ZipFile(file) as archive:
            members = {item.filename: item for item in archive.infolist()}
            shape = None
            if "arr_0.npy" in members:
                with archive.open("arr_0.npy") as member:
                    shape = _image_shape(member)
        moments = read_moments(file)
        if shape is None and moments is None:
            names = ", ".join(sorted(name.removesuffix(".npy") for name in members)) or "nothing"
            raise ValueError(f"it holds {names}, neither arr_0 (images) nor mu and sigma")
        if shape is not None and shape[0] < 2:
            raise ValueError(f"{shape[0]} images: at least two are needed to measure against")
    parts = [f"{item.filename} {item.file_size} {item.CRC}" for _, item in sorted(members.items())]
    return NpzHeader(shape, moments, hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16])


def _image_shape(member: IO[bytes]) -> tuple[int, ...]:
    """The shape of an array of images, of which the header is read. Raises ValueError for another array."""
    version = np.lib.format.read_magic(member)  # type: ignore[arg-type]
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, kind = read(member)  # type: ignore[arg-type]
    if kind != np.uint8 or fortran or len(shape) != 4 or shape[3] != 3:
        order = " in Fortran's order" if fortran else ""
        raise ValueError(f"arr_0 is {kind} {shape}{order}, expected uint8 (N, H, W, 3)")
    return shape


def read_images(file: IO[bytes], batch: int) -> Iterator[np.ndarray]:
    """`arr_0` of a file, `batch` images at a time: uint8 (n, H, W, 3). Raises DataError when it is no such file."""
    with _named("no .npz file of images"), zipfile.ZipFile(file) as archive, archive.open("arr_0.npy") as member:
        shape = _image_shape(member)
        size = int(np.prod(shape[1:]))
        for first in range(0, shape[0], batch):
            count = min(batch, shape[0] - first)
            data = member.read(count * size)
            if len(data) < count * size:
                raise ValueError(f"arr_0 ends after {first + len(data) // size} of its {shape[0]} images")
            yield np.frombuffer(data, np.uint8).reshape(count, *shape[1:])


@contextmanager
def _named(what: str) -> Iterator[None]:
    """zipfile and numpy raise nearly every type on bad bytes."""
    try:
        yield
    except (DataError, StorageError):
        raise
    except Exception as error:
        raise DataError(f"{what}: {type(error).__name__}: {error}") from None


def read_moments(file: IO[bytes]) -> tuple[np.ndarray, np.ndarray] | None:
    """`mu` (D,) and `sigma` (D, D) where the file has them: ADM's reference batches hold those of all training images,
    and 10,000 images of them in arr_0. Raises DataError when it is no such file."""
    with _named("no .npz file with moments"):
        file.seek(0)
        content = np.load(file, allow_pickle=False)
        if not {"mu", "sigma"} <= set(content.files):
            return None
        mean, covariance = content["mu"], content["sigma"]
        if mean.ndim != 1 or covariance.shape != mean.shape * 2 or {mean.dtype.kind, covariance.dtype.kind} != {"f"}:
            raise ValueError(f"mu is {mean.dtype} {mean.shape}, sigma {covariance.dtype} {covariance.shape}")
        if not (np.isfinite(mean).all() and np.isfinite(covariance).all() and np.allclose(covariance, covariance.T)):
            raise ValueError("mu and sigma are no mean and covariance: not finite, or not symmetric")
        return mean, covariance
