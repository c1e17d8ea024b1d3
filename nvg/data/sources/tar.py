"""Members of a tar file, streamed. Broken ones are reported, not dropped. Nothing is unpacked to disk."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from typing import Any

from nvg import storage
from nvg.data.records import BrokenImage
from nvg.errors import StorageError

MOST_BYTES = 2**30  # of a member: a compressed archive of a few kB may hold any number of zeros


class _Header(tarfile.TarInfo):
    """A strict header: tarfile takes a damaged or missing one in the middle for the end of the archive."""

    @classmethod
    def fromtarfile(cls, archive: Any) -> Any:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # the end as it should be
            raise
        except tarfile.HeaderError as error:
            raise tarfile.SubsequentHeaderError(str(error)) from None  # type: ignore[attr-defined]


def read_members(path: str) -> Iterator[tuple[str, bytes | BrokenImage]]:
    """(name, bytes) of every file, hidden ones (`._x.jpg`) passed over; of a link, which has no bytes, a BrokenImage.

    A truncated or damaged archive ends with ("", BrokenImage naming it). A store that fails raises its error.
    """
    last = ""
    try:
        with storage.open(path) as file, tarfile.open(fileobj=file, mode="r|*", tarinfo=_Header) as archive:
            for member in archive:
                if member.name.rpartition("/")[2].startswith("."):
                    continue
                if member.islnk() or member.issym():
                    reason = f"is a link to {member.linkname}, without bytes: write the archive with --hard-dereference"
                    yield member.name, BrokenImage(member.name, f"{path}#{member.name}", reason)
                if not member.isfile():
                    continue
                if member.size > MOST_BYTES:
                    raise tarfile.ReadError(f"{member.name} has {member.size} bytes, more than any image")
                stream = archive.extractfile(member)
                assert stream is not None
                data = stream.read()
                if len(data) < member.size:
                    raise tarfile.ReadError("unexpected end of data")
                last = member.name
                archive.members.clear()  # type: ignore[attr-defined]  # else it keeps the header of every member
                yield member.name, data
    except (tarfile.TarError, OSError, EOFError) as error:
        if isinstance(error, StorageError):
            raise
        where = f"after {last}" if last else "at its beginning"
        yield "", BrokenImage(path.rpartition("/")[2], path, f"the archive cannot be read on {where}: {error}")


def count_members(path: str, suffixes: tuple[str, ...] = ()) -> int:
    """The number of files in an archive, of those suffixes where given."""
    return sum(bool(name) and (not suffixes or name.lower().endswith(suffixes)) for name, _ in read_members(path))
