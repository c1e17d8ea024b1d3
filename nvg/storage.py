"""Files and folders on any fsspec URL: the only place that knows whether a path is local, S3 or something else.

Every write is atomic: a local file is written beside its place and renamed, an object store shows an object only when
its put is complete. A folder is complete when it has its `metadata.json`, which is written last.

Requests to S3 are tried up to 8 times in growing intervals (about half a minute in all) where the server answers 500,
502, 503 or 504, is slow, cuts the connection or cannot be reached; AWS_MAX_ATTEMPTS and AWS_RETRY_MODE change that. A
request that still fails raises StorageError: it is never taken for a broken image or a missing file.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import posixpath
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem

from nvg.errors import DiskFull, MissingPackage, StorageError
from nvg.extras import require_store

if TYPE_CHECKING:
    from torch import Tensor

LAST_FILE = "metadata.json"
CLIENTS = ("botocore", "aiobotocore", "aiohttp", "gcsfs", "huggingface_hub", "httpx", "httpx2")  # define their errors
HINTS = {  # scheme of a URL -> where to look when its store refuses
    "s3": "AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the bucket's name",
    "hf": "HF_TOKEN, HF_ENDPOINT and the repository's name",
}
SAMPLED_BLOCKS, SAMPLED_BYTES = 16, 4096  # by which weights are told apart
FORMAT = 2  # of artifacts, by their metadata.json; 1: networks that were not yet the released system's
# For all that reads S3 in this process, MLflow's boto3 too.
os.environ.setdefault("AWS_RETRY_MODE", "standard")
os.environ.setdefault("AWS_MAX_ATTEMPTS", "8")
Record = TypeVar("Record")


@contextmanager
def _asking(path: str) -> Iterator[None]:
    """Raise StorageError where the block fails because of the store of `path` or the network.

    A store's client has errors of its own: the module that defines an error tells it from an error of a file.
    """
    try:
        yield
    except (StorageError, FileNotFoundError, FileExistsError):
        raise
    except Exception as error:
        of_network = isinstance(error, TimeoutError | ConnectionError | PermissionError)
        if is_url(path) and (of_network or of_client(error)):
            look_at = HINTS.get(path.partition("://")[0], "the URL and the credentials of its store")
            raise StorageError(
                f"{path}: {type(error).__name__}: {error}. Look at {look_at}, or whether the store is up"
            ) from error
        raise


def of_client(error: BaseException | None) -> bool:
    """Whether an error, or one that it follows from, is one of an object store's client."""
    while error is not None:
        if type(error).__module__.partition(".")[0] in CLIENTS:
            return True
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def space_for(path: str) -> Iterator[None]:
    """Raise DiskFull, naming `path`, where the block fails because the disk is full."""
    try:
        yield
    except DiskFull:
        raise
    except Exception as error:
        full = (errno.ENOSPC, errno.EDQUOT)
        messages = ["database or disk is full", *(f"os error {number}" for number in full)]  # sqlite's, safetensors'
        if getattr(error, "errno", None) in full or any(text in str(error) for text in messages):
            raise DiskFull(f"no space left to write {path}: make space and run the same command again") from error
        raise


def is_url(path: str) -> bool:
    """Whether a path names a file system (`s3://...`, `memory://...`, `file://...`)."""
    return "://" in str(path)


def join(base: str, *parts: str) -> str:
    """Paths or a URL and names, joined by slashes."""
    return posixpath.join(str(base), *parts)


def absolute(path: str) -> str:
    """A path as `list_files` writes it: a local one absolute, no slash at its end."""
    return (str(path) if is_url(path) else os.path.abspath(path)).rstrip("/")


def _resolve(path: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a path, and the path's name in it."""
    if not is_url(path):  # a local name may hold anything, also what fsspec would read as a chain of URLs
        return LocalFileSystem(), os.path.abspath(path)
    require_store(path)
    try:
        return fsspec.core.url_to_fs(str(path))
    except ImportError as error:  # gs://, az://, ...: fsspec names the package
        raise MissingPackage(f"{path}: {error}") from None


def is_local(path: str) -> bool:
    """Whether a path names a file of this machine: a plain path or `file://...`."""
    return not is_url(path) or str(path).startswith("file://")


def local_path(path: str) -> Path:
    """A local path, or `file://...`, as a Path."""
    return Path(str(path).removeprefix("file://"))


def exists(path: str) -> bool:
    """Whether a file or folder exists now (no listing cache)."""
    with _asking(path):
        system, name = _resolve(path)
        system.invalidate_cache()
        return system.exists(name)


def list_files(path: str, suffixes: Sequence[str] = ()) -> list[str]:
    """All files below a folder (or the file itself), sorted, as absolute paths or URLs. Where suffixes are given, only
    files with one of them. See `list_sizes`. Returns [] for a missing folder.
    """
    return list(list_sizes(path, suffixes))


def list_sizes(path: str, suffixes: Sequence[str] = ()) -> dict[str, int]:
    """The files of `list_files` with their bytes, from the listing alone: no request per file.

    Suffixes match in upper and lower case. Hidden files and folders (`.name`) and the `__MACOSX` folder that some zip
    programs leave are passed over; links are followed. Every result starts with `path` and a slash, made absolute
    where it is local.
    """
    base = absolute(path)
    endings = tuple(suffix.lower() for suffix in suffixes) or ("",)
    sizes = {}
    for name, size in _walk(local_path(base)) if is_local(base) else _find(base):
        file = f"{base}/{name}" if name else base
        hidden = any(item.startswith(".") or item == "__MACOSX" for item in name.split("/"))
        if not hidden and file.lower().endswith(endings):
            sizes[file] = size
    return dict(sorted(sizes.items()))


def _find(url: str) -> Iterator[tuple[str, int]]:
    """(name below the URL, bytes) of the files at a URL."""
    with _asking(url):
        system, root = _resolve(url)
        system.invalidate_cache()
        root = root.rstrip("/")
        files = system.find(root, detail=True)
    for name, info in files.items():
        if info["type"] == "file" and not name.endswith("/"):  # object stores may hold markers of empty folders
            yield name.removeprefix(root).lstrip("/"), info["size"] or 0


def _walk(root: Path) -> Iterator[tuple[str, int]]:
    """(name below the root, bytes) of local files. Links are followed; a folder that holds itself is entered once."""
    if root.is_file():
        yield "", root.stat().st_size
    folders, seen = [(str(root), "")], set()
    while folders:
        folder, prefix = folders.pop()
        if not os.path.isdir(folder) or os.path.realpath(folder) in seen:
            continue
        seen.add(os.path.realpath(folder))
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir():
                    folders.append((entry.path, f"{prefix}{entry.name}/"))
                elif entry.is_file():  # not a dangling link, a socket, ...
                    yield prefix + entry.name, entry.stat().st_size


def list_folders(path: str) -> list[str]:
    """The names of the folders directly in a folder, sorted; [] where the folder is missing."""
    with _asking(path):
        system, name = _resolve(path)
        system.invalidate_cache()
        if not system.isdir(name):
            return []
        items = system.ls(name, detail=True)
    return sorted(item["name"].rstrip("/").rsplit("/", 1)[-1] for item in items if system.isdir(item["name"]))


def expand(path: str, suffixes: Sequence[str]) -> list[str]:
    """The files that a file name, a folder, or a pattern with stars and braces (`train-{00..09}.tar`) names, sorted.
    See `expand_sizes`."""
    return list(expand_sizes(path, suffixes))


def expand_sizes(path: str, suffixes: Sequence[str]) -> dict[str, int]:
    """The files of `expand` with their bytes.

    Raises FileNotFoundError naming the pattern when no file matches, or the missing file of a brace.
    """
    sizes: dict[str, int] = {}
    for item in [path] if exists(path) else braces(path):
        if any(mark in item for mark in "*?[") and not exists(item):
            with _asking(item):
                system, pattern = _resolve(item)
                system.invalidate_cache()
                found = system.glob(pattern, detail=True)
            for name, info in found.items():
                file = system.unstrip_protocol(name) if is_url(item) else name
                if is_url(item) and info["type"] == "file":  # the listing has its size: no request per file
                    sizes |= {file: info["size"] or 0} if file.lower().endswith(tuple(suffixes)) else {}
                else:
                    sizes |= list_sizes(file, suffixes)
        else:
            files = list_sizes(item, suffixes)
            if not files:
                raise FileNotFoundError(f"no {' or '.join(suffixes)} files at {item}")
            sizes |= files
    if not sizes:
        raise FileNotFoundError(f"no {' or '.join(suffixes)} files at {path}")
    return dict(sorted(sizes.items()))


def braces(path: str) -> list[str]:
    """`a-{00..02}` -> a-00, a-01, a-02; `{x,y}` -> x, y; the first brace, then the rest."""
    match = re.search(r"\{([^{}]+)\}", path)
    if match is None:
        return [path]
    span = re.fullmatch(r"(\d+)\.\.(\d+)", match[1])
    if span:
        values = [str(n).zfill(len(span[1])) for n in range(int(span[1]), int(span[2]) + 1)]
    else:
        values = match[1].split(",")
    return [item for value in values for item in braces(path[: match.start()] + value + path[match.end() :])]


@contextmanager
def open(path: str, mode: str = "rb") -> Iterator[IO]:  # noqa: A001
    """Open a file for reading. For writing use write_bytes, which is atomic."""
    if set(mode) & set("wax+"):
        raise ValueError(f"storage.open reads only, not {mode!r}: use write_bytes or folder_writer")
    with _asking(path):
        system, name = _resolve(path)
        with system.open(name, mode) as file:
            yield file


def read_bytes(path: str) -> bytes:
    """A file, whole, in one request. Raises FileNotFoundError naming it."""
    with _asking(path):
        system, name = _resolve(path)
        return system.cat_file(name)


def read_range(path: str, start: int, length: int) -> bytes:
    """`length` bytes of a file from `start` on, in one request; fewer where the file ends before. Raises
    FileNotFoundError naming it."""
    with _asking(path):
        system, name = _resolve(path)
        return system.cat_file(name, start=start, end=start + length)


def write_bytes(path: str, data: bytes) -> None:
    """Write a file atomically, making its folder."""
    if is_local(path):
        with file_writer(path) as file:
            file.write(data)
    else:
        with _asking(path):
            system, name = _resolve(path)
            system.pipe_file(name, data)


@contextmanager
def file_writer(path: str) -> Iterator[IO[bytes]]:
    """A file to write, in a new or an existing folder, which appears under its name when the block ends well."""
    if not is_local(path):
        with tempfile.TemporaryDirectory() as scratch:
            copy = Path(scratch, "copy")
            with space_for(f"{path} (its copy in {scratch})"), copy.open("wb") as file:
                yield file
            with _asking(path):
                system, name = _resolve(path)
                system.put_file(str(copy), name)  # in pieces where the file is large; shown when it is whole
        return
    target = local_path(path)
    temporary = target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        with space_for(path):
            target.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                yield file
            os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def create_bytes(path: str, data: bytes) -> None:
    """Write a new file. Raises FileExistsError where it exists; of two writers at once, one gets that error."""
    with space_for(path), _asking(path):
        system, name = _resolve(path)
        if is_local(path):
            local_path(path).parent.mkdir(parents=True, exist_ok=True)
        try:
            system.pipe_file(name, data, mode="create")
        except OSError as error:  # s3fs knows this answer by words that Ceph's gateway does not send
            if getattr(error.__cause__, "response", {}).get("Error", {}).get("Code") != "PreconditionFailed":
                raise
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path) from error


def read_json(path: str) -> Any:
    """A JSON file. Raises ValueError naming the file when it is not JSON."""
    try:
        return json.loads(read_bytes(path))
    except (ValueError, RecursionError) as error:  # bytes that are no text, brackets thousands deep
        raise ValueError(f"{path} is not JSON (cut off?): {error}") from None


def check_format(metadata: Mapping[str, Any], folder: str, error: type[Exception]) -> None:
    """Raises `error` for the metadata.json of an artifact that this version cannot use."""
    found = metadata.get("format", 1)  # token sets of the first format do not name it
    if found == 1:
        raise error(
            f"{folder} was made before the networks became those of the released system (format 1, this version of "
            f"nvg reads {FORMAT}): train again, from the tokenizer on"
        )
    if found != FORMAT:
        raise error(f"{folder} has format {found!r:.20}, this version of nvg reads {FORMAT}: make it again")


def parse_record(kind: type[Record], raw: str | bytes, where: str, error: type[Exception]) -> Record:
    """A dataclass from the JSON that a file holds: every key known, every type right, none missing.

    Raises `error`, naming `where` and the key, for anything else.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        content = json.loads(raw)
        unknown = sorted(content.keys() - {item.name for item in fields(kind)})  # type: ignore[arg-type]
        if unknown:
            raise ValueError(f"unknown key {unknown[0]!r}, perhaps of another version of nvg")
        return TypeAdapter(kind).validate_json(raw, strict=True)
    except ValidationError as problem:
        first = problem.errors()[0]
        raise error(f"{where} is damaged: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    except (ValueError, AttributeError, RecursionError) as problem:
        raise error(f"{where} is damaged: {problem}") from None


def read_safetensors(path: str) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a .safetensors file. Raises ValueError naming the file when it is damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    data = read_bytes(path)
    try:
        tensors = load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    except (SafetensorError, ValueError, KeyError) as error:  # KeyError: a type that torch has not
        raise ValueError(f"{path} is damaged ({error}): remove it and make it again") from None
    return header.get("__metadata__") or {}, tensors


def write_json(path: str, value: Any) -> None:
    """Write JSON atomically."""
    write_bytes(path, json.dumps(value, indent=2).encode() + b"\n")


@contextmanager
def folder_writer(path: str) -> Iterator[Path]:
    """A local folder to fill, which becomes `path` when the block ends well, and vanishes when it does not.

    It replaces an older folder. A local folder is renamed. Elsewhere its files are uploaded, `metadata.json` last, so
    that a reader who waits for that file never sees half a folder; an upload that fails is removed. A path has one
    writer at a time: it removes first what a killed one has left.
    """
    if is_local(path):
        with _local_folder_writer(path) as folder:
            yield folder
        return
    with tempfile.TemporaryDirectory() as scratch:
        with space_for(f"{path} (its copy in {scratch})"):
            yield Path(scratch)
        _upload(Path(scratch), path)


@contextmanager
def _local_folder_writer(path: str) -> Iterator[Path]:
    target = local_path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    for leftover in target.parent.glob(f".{glob.escape(target.name)}.????????.*"):
        shutil.rmtree(leftover)
    temporary = target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}.tmp"
    aside = temporary.with_suffix(".old")
    try:
        with space_for(path):
            temporary.mkdir()
            yield temporary
            if target.exists():
                os.replace(target, aside)
            os.replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(aside, ignore_errors=True)


def _upload(folder: Path, url: str) -> None:
    """Replace the folder at a URL by a local one, `metadata.json` last."""
    remove(join(url, LAST_FILE))  # from here on it is no finished folder ...
    remove(url)
    files = sorted((item for item in folder.rglob("*") if item.is_file()), key=lambda file: file.name == LAST_FILE)
    try:
        for file in files:
            target = join(url, file.relative_to(folder).as_posix())
            with _asking(target):
                system, name = _resolve(target)
                system.put_file(str(file), name)  # in pieces where the file is large; shown when it is whole
    except BaseException:
        remove(url)
        raise


def local_folder(path: str) -> Path:
    """A local copy of a folder: itself where it is local, else downloaded once into a cache.

    The cache goes by the URL and by what the store says of each file (its ETag, time and size), so a folder that was
    written anew is downloaded anew. Raises FileNotFoundError naming it.
    """
    if is_local(path):
        folder = local_path(path)
        if not folder.is_dir():
            raise FileNotFoundError(f"no folder at {path}")
        return folder
    files = list_files(path)
    if not files:
        raise FileNotFoundError(f"no folder at {path}")
    system, _ = _resolve(path)
    versions = hashlib.sha256()
    for file in files:
        versions.update(f"{file}\0{system.ukey(_resolve(file)[1])}\n".encode())
    folder = _cache() / versions.hexdigest()[:32]
    if not folder.is_dir():
        _download(files, path, folder)
    return folder


def _cache() -> Path:
    """The folder of downloaded folders, this user's alone."""
    cache = Path(tempfile.gettempdir()) / f"nvg-cache-{os.getuid()}"
    cache.mkdir(mode=0o700, exist_ok=True)
    if cache.is_symlink() or cache.stat().st_uid != os.getuid():
        raise PermissionError(f"{cache} is another user's: remove it, or set TMPDIR to a folder of your own")
    return cache


def _download(files: Sequence[str], url: str, folder: Path) -> None:
    """Download the files of a URL into a local folder, which exists when it is complete."""
    temporary = Path(tempfile.mkdtemp(dir=folder.parent))
    try:
        for file in files:
            target = temporary / _relative(file, url)
            target.parent.mkdir(parents=True, exist_ok=True)
            with space_for(f"{target} (a copy of {file})"), _asking(file):
                system, name = _resolve(file)
                system.get_file(name, str(target))
        try:
            os.rename(temporary, folder)
        except OSError:  # another process was first: its copy is the same, and may be in use
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove(path: str) -> None:
    """Remove a file or a folder, if it exists."""
    with _asking(path):
        system, name = _resolve(path)
        system.invalidate_cache()
        if system.exists(name):
            system.rm(name, recursive=True)
        system.invalidate_cache()


def fingerprint(files: Sequence[str] | Mapping[str, int], root: str = "", *extra: str) -> str:
    """A short hash of a set of files: of their names below `root`, their sizes (read from the store where only names
    are given) and the `extra` texts. 16 hexadecimal digits."""
    result = hashlib.sha256()
    for file in sorted(files):
        size = files[file] if isinstance(files, Mapping) else _resolve(file)[0].size(_resolve(file)[1])
        result.update(f"{_relative(file, root)}\0{size}\n".encode(errors="surrogateescape"))  # names of any bytes
    for text in extra:
        result.update(f"\0{text}\n".encode())
    return result.hexdigest()[:16]


def sample(path: str) -> str:
    """A short hash of a file's size and of 16 blocks of 4 KiB spread over it, or of all files of a folder. It tells
    weights apart without reading them whole. 16 hexadecimal digits."""
    result = hashlib.sha256()
    for file, size in list_sizes(path).items():
        result.update(f"{_relative(file, absolute(path))}\0{size}\n".encode(errors="surrogateescape"))
        with open(file) as content:
            for block in range(SAMPLED_BLOCKS):
                content.seek(max(0, size - SAMPLED_BYTES) * block // (SAMPLED_BLOCKS - 1))
                result.update(content.read(SAMPLED_BYTES))
    return result.hexdigest()[:16]


def common_folder(files: Iterable[str]) -> str:
    """The deepest folder that holds all the files, with its slash; "" where there is none."""
    names = list(files)
    return posixpath.commonprefix(names).rpartition("/")[0] + "/" if names else ""


def _relative(file: str, root: str) -> str:
    """The name of a file below a root. Raises ValueError for a name that would leave it."""
    name = file.removeprefix(root).lstrip("/")
    if ".." in name.split("/"):
        raise ValueError(f"{file} would leave its folder")
    return name
