"""Members of a tar file, streamed, with what is broken said and not dropped. Nothing is unpacked to disk."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator

from nvg import storage
from nvg.data.records import BrokenImage


def read_members(path: str) -> Iterator[tuple[str, bytes | BrokenImage]]:
    """(name, bytes) of every regular file. A truncated or damaged archive ends with one BrokenImage naming it."""
    last = ""
    try:
        with storage.open(path) as file, tarfile.open(fileobj=file, mode="r|*") as archive:
            for member in archive:
                if not member.isfile():
                    continue
                last = member.name
                stream = archive.extractfile(member)
                assert stream is not None
                data = stream.read()
                if len(data) < member.size:
                    raise tarfile.ReadError("unexpected end of data")
                yield member.name, data
    except (tarfile.TarError, OSError, EOFError) as error:
        place = f"after {last}" if last else "at its beginning"
        yield last, BrokenImage(path, path, f"the archive cannot be read on {place}: {error}")


def count_members(path: str, suffixes: tuple[str, ...] = ()) -> int:
    """The number of readable files in an archive, of those suffixes where given."""
    return sum(
        not isinstance(data, BrokenImage) and (not suffixes or name.lower().endswith(suffixes))
        for name, data in read_members(path)
    )
