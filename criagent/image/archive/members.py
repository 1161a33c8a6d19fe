# SPDX-License-Identifier: Apache-2.0
"""Members of a tar file by name, found with the limited header reader and read in place.

Nothing is extracted to a path of the archive's choosing: members are found by exact names.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from criagent.base.errors import CorruptError, InvalidRequestError
from criagent.image.documents.manifest import MAX_DOCUMENT
from criagent.image.tar.decompress import BadLayerError
from criagent.image.tar.headers import HARD_LINK, REGULAR, SYMLINK, entries

_MAX_MEMBERS = 100_000
_MAX_NAME = 1024  # no image archive uses longer names
_MAX_NAMES = 32 << 20  # bytes of all names together
_MAX_LINKS = 8  # links to links


@dataclass(frozen=True, slots=True)
class Member:
    """Where a member's content lies; a link has a target instead."""

    offset: int
    size: int
    target: str = ""


class _Stream:
    """What `tar_headers.entries` reads from, over a file that can seek."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._size = os.fstat(file.fileno()).st_size
        self.read_bytes = 0

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self.read_bytes += len(data)
        return data

    def skip(self, size: int) -> None:
        if size > self._size - self.read_bytes:
            raise BadLayerError("the archive ends within a file")
        self.read_bytes += size
        self._file.seek(self.read_bytes)


class Members:
    """The regular members and links of the plain tar `file`.

    Raises BadLayerError for other files, InvalidRequestError beyond the limits.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._members: dict[str, Member] = {}
        names = 0
        file.seek(0)
        stream = _Stream(file)
        for number, entry in enumerate(entries(stream)):  # type: ignore[arg-type] # see _Stream
            if number >= _MAX_MEMBERS:
                raise InvalidRequestError(f"the archive has more than {_MAX_MEMBERS} members")
            if len(entry.name) > _MAX_NAME or len(entry.link) > _MAX_NAME:
                continue
            names += len(entry.name) + len(entry.link)
            if names > _MAX_NAMES:
                raise InvalidRequestError(f"the archive has more than {_MAX_NAMES} bytes of names")
            name, link = _clean(entry.name), os.fsdecode(entry.link)
            if entry.kind == REGULAR and entry.sparse is None:
                self._members[name] = Member(stream.read_bytes, entry.size)
            elif entry.kind == SYMLINK:
                link = posixpath.join(posixpath.dirname(name), link)
                self._members[name] = Member(0, 0, _clean(link))
            elif entry.kind == HARD_LINK:
                self._members[name] = Member(0, 0, _clean(link))

    def __contains__(self, name: str) -> bool:
        return name in self._members

    def find(self, name: str) -> Member:
        """The member with the content of `name`; Docker and podman link equal layers.

        Raises CorruptError.
        """
        at = _clean(name)
        for _ in range(_MAX_LINKS):
            member = self._members.get(at)
            if member is None:
                raise CorruptError(f"the archive lacks {name[:200]!r}")
            if not member.target:
                return member
            at = member.target
        raise CorruptError(f"the archive has {name[:200]!r} as a link in an endless chain of links")

    def chunks(self, member: Member, chunk: int = 1 << 20) -> Iterator[bytes]:
        """The content of a member."""
        at, end = member.offset, member.offset + member.size
        while at < end:
            data = os.pread(self._file.fileno(), min(chunk, end - at), at)
            if not data:
                raise CorruptError("the archive ends within a file")
            at += len(data)
            yield data

    def start(self, member: Member) -> bytes:
        """The first bytes of a member, by which its compression is known."""
        return os.pread(self._file.fileno(), min(4, member.size), member.offset)

    def small(self, name: str) -> bytes:
        """A document. Raises CorruptError when it is larger than documents are."""
        member = self.find(name)
        if member.size > MAX_DOCUMENT:
            raise CorruptError(f"{name[:200]!r} is larger than {MAX_DOCUMENT} bytes")
        return b"".join(self.chunks(member))


def _clean(name: str | bytes) -> str:
    """`name` without `.`, `..` and doubled slashes; ".." at the top stays at the top."""
    text = os.fsdecode(name) if isinstance(name, bytes) else name
    return posixpath.normpath("/" + text).lstrip("/")
