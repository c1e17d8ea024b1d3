"""Files and folders on any fsspec URL: the only place that knows whether a path is local, S3 or something else.

Every write is atomic: a local file is written beside its place and renamed, an object store shows an object only when
its put is complete. A folder is complete when its `metadata.json` is there, which is written last.
"""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import fsspec

LAST_FILE = "metadata.json"


def is_url(path: str) -> bool:
    """Whether a path names a file system (`s3://...`, `memory://...`, `file://...`)."""
    return "://" in str(path)


def join(base: str, *parts: str) -> str:
    """Paths or a URL and names, joined by slashes."""
    return posixpath.join(str(base), *parts)


def _resolve(path: str) -> tuple[fsspec.AbstractFileSystem, str]:
    return fsspec.core.url_to_fs(str(path))


def _is_local(path: str) -> bool:
    return not is_url(path) or str(path).startswith("file://")


def _local(path: str) -> Path:
    return Path(str(path).removeprefix("file://"))


def exists(path: str) -> bool:
    """Whether a file or folder is there now (no listing cache)."""
    system, name = _resolve(path)
    system.invalidate_cache()
    return system.exists(name)


def list_files(path: str, suffixes: Sequence[str] = ()) -> list[str]:
    """All files below a folder, sorted, as full paths or URLs; only those that end so, where suffixes are given.

    Upper and lower case of suffixes are one. Returns [] for a folder that is not there.
    """
    system, name = _resolve(path)
    system.invalidate_cache()
    found = system.find(name) if system.exists(name) else []
    wanted = tuple(suffix.lower() for suffix in suffixes)
    named = [item for item in found if not wanted or item.lower().endswith(wanted)]
    return sorted(system.unstrip_protocol(item) if is_url(path) else item for item in named)


def expand(path: str, suffixes: Sequence[str]) -> list[str]:
    """The files that a file name, a folder, or a pattern with stars and braces (`train-{00..09}.tar`) names, sorted.

    Raises FileNotFoundError naming the pattern when there are none.
    """
    names: list[str] = []
    for item in _braces(path):
        if any(mark in item for mark in "*?["):
            system, pattern = _resolve(item)
            found = system.glob(pattern)
            names += [system.unstrip_protocol(name) if is_url(item) else name for name in found]
        elif item.lower().endswith(tuple(suffixes)):
            names += [item] if exists(item) else []
        else:
            names += list_files(item, suffixes)
    if not names:
        raise FileNotFoundError(f"no {' or '.join(suffixes)} files at {path}")
    return sorted(names)


def _braces(path: str) -> list[str]:
    """`a-{00..02}` -> a-00, a-01, a-02; `{x,y}` -> x, y; the first brace, then the rest."""
    match = re.search(r"\{([^{}]+)\}", path)
    if match is None:
        return [path]
    span = re.fullmatch(r"(\d+)\.\.(\d+)", match[1])
    if span:
        values = [str(n).zfill(len(span[1])) for n in range(int(span[1]), int(span[2]) + 1)]
    else:
        values = match[1].split(",")
    return [item for value in values for item in _braces(path[: match.start()] + value + path[match.end() :])]


@contextmanager
def open(path: str, mode: str = "rb") -> Iterator[IO]:  # noqa: A001
    """Open a file for reading. For writing use write_bytes, which is atomic."""
    if set(mode) & set("wax+"):
        raise ValueError(f"storage.open reads only, not {mode!r}: use write_bytes or folder_writer")
    with fsspec.open(str(path), mode) as file:
        yield file


def read_bytes(path: str) -> bytes:
    """A file, whole. Raises FileNotFoundError naming it."""
    with open(path) as file:
        return file.read()


def write_bytes(path: str, data: bytes) -> None:
    """Write a file atomically, making its folder."""
    if _is_local(path):
        target = _local(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}.tmp"
        try:
            temporary.write_bytes(data)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
    else:
        system, name = _resolve(path)
        system.pipe_file(name, data)


def read_json(path: str) -> Any:
    """A JSON file. Raises ValueError naming the file when it is not JSON."""
    try:
        return json.loads(read_bytes(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON (cut off?): {error}") from None


def write_json(path: str, value: Any) -> None:
    """Write JSON atomically."""
    write_bytes(path, json.dumps(value, indent=2).encode() + b"\n")


@contextmanager
def folder_writer(path: str) -> Iterator[Path]:
    """A local folder to fill, which becomes `path` when the block ends well, and vanishes when it does not.

    Local: a rename, replacing what was there. Elsewhere: an upload, `metadata.json` last, so that a reader who waits
    for that file never sees half a folder.
    """
    if _is_local(path):
        target = _local(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}.tmp"
        temporary.mkdir()
        try:
            yield temporary
            if target.exists():
                shutil.rmtree(target)
            os.replace(temporary, target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return
    with tempfile.TemporaryDirectory() as scratch:
        yield Path(scratch)
        files = sorted((item for item in Path(scratch).rglob("*") if item.is_file()), key=lambda f: f.name == LAST_FILE)
        for file in files:
            write_bytes(join(path, file.relative_to(scratch).as_posix()), file.read_bytes())


def local_folder(path: str) -> Path:
    """A local copy of a folder: itself where it is local, else downloaded into a cache, once for each version of its
    files (an object store's tags tell them apart). Raises FileNotFoundError naming it."""
    if _is_local(path):
        folder = _local(path)
        if not folder.is_dir():
            raise FileNotFoundError(f"no folder at {path}")
        return folder
    files = list_files(path)
    if not files:
        raise FileNotFoundError(f"no folder at {path}")
    cache = Path(tempfile.gettempdir()) / f"nvg-cache-{os.getuid()}"
    system, _ = _resolve(path)
    versions = "\n".join(f"{file} {system.ukey(_resolve(file)[1])}" for file in files)
    folder = cache / hashlib.sha256(versions.encode()).hexdigest()[:16]
    if not folder.is_dir():
        with folder_writer(str(folder)) as temporary:
            for file in files:
                target = temporary / _relative(file, path)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(read_bytes(file))
    return folder


def remove(path: str) -> None:
    """Remove a file or a folder; nothing happens where there is none."""
    system, name = _resolve(path)
    system.invalidate_cache()
    if system.exists(name):
        system.rm(name, recursive=True)


def fingerprint(files: Sequence[str], root: str = "") -> str:
    """A short hash of what a set of files is: their names below `root` and their sizes, 16 hexadecimal digits."""
    result = hashlib.sha256()
    for file in sorted(files):
        system, name = _resolve(file)
        result.update(f"{_relative(file, root)}\0{system.size(name)}\n".encode())
    return result.hexdigest()[:16]


def _relative(file: str, root: str) -> str:
    # Through the file system, which may write a path its own way (memory://a is /a).
    whole, base = (_resolve(item)[1].strip("/") if item else "" for item in (file, root))
    name = whole.removeprefix(base).lstrip("/")
    if ".." in name.split("/"):
        raise ValueError(f"{file} would leave its folder")
    return name
