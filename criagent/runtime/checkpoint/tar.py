# SPDX-License-Identifier: Apache-2.0
"""Tar archives of checkpoints: files by their paths, and what a container changed. Synchronous.

Sources are opened without following symlinks: a container may have put one anywhere.
"""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO

from criagent.base.errors import AgentError
from criagent.image.archive.room import Room
from criagent.image.snapshots.changes import Change, Ids

_AT_ONCE = 1 << 20
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_TYPES = {
    stat.S_IFREG: tarfile.REGTYPE,
    stat.S_IFDIR: tarfile.DIRTYPE,
    stat.S_IFLNK: tarfile.SYMTYPE,
    stat.S_IFCHR: tarfile.CHRTYPE,
    stat.S_IFBLK: tarfile.BLKTYPE,
    stat.S_IFIFO: tarfile.FIFOTYPE,
}
_OF_THE_NODE = ("trusted.", "security.selinux", "security.ima", "security.evm")

Interrupted = Callable[[], object]  # raises when the work is no longer wanted


class ShortenedError(AgentError):
    """A file became shorter while it was read."""


class _Source:
    """Reads exactly `size` bytes of a descriptor, and asks before each piece whether to go on."""

    def __init__(self, fd: int, size: int, interrupted: Interrupted, name: str) -> None:
        self._fd = fd
        self._left = size
        self._interrupted = interrupted
        self._name = name

    def read(self, size: int) -> bytes:
        self._interrupted()
        pieces = []
        wanted = min(size, self._left)
        while wanted:
            data = os.read(self._fd, wanted)
            if not data:
                raise ShortenedError(f"{self._name} became shorter while it was archived")
            pieces.append(data)
            wanted -= len(data)
            self._left -= len(data)
        return b"".join(pieces)


class TarWriter:
    """Writes members to `out`, whose file system is that of `room`."""

    def __init__(self, out: BinaryIO, room: Room, interrupted: Interrupted) -> None:
        self._tar = tarfile.TarFile(
            fileobj=out, mode="w", format=tarfile.PAX_FORMAT, copybufsize=_AT_ONCE
        )
        self._room = room
        self._interrupted = interrupted
        self._linked: dict[tuple[int, int], str] = {}

    def close(self) -> None:
        """Write the end of the archive."""
        self._tar.close()

    def add_tree(self, top: Path, name: str) -> None:
        """The directory `top` with all that is below it, as `name`. Raises OSError, AgentError."""
        self.add_file(top, name)
        for entry in sorted(top.iterdir()):
            if entry.is_dir() and not entry.is_symlink():
                self.add_tree(entry, f"{name}/{entry.name}")
            else:
                self.add_file(entry, f"{name}/{entry.name}")

    def add_file(self, path: Path, name: str) -> None:
        """One file or directory. Raises OSError, AgentError."""
        fd = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            facts = os.stat(path.name, dir_fd=fd, follow_symlinks=False)
            self._add(Change(name, path.name, fd, facts), facts, facts.st_uid, facts.st_gid)
        finally:
            os.close(fd)

    def add_changes(self, found: Iterable[Change], ids: Ids) -> list[str]:
        """What was changed, with owners as the container sees them; the paths of what was deleted.

        Sockets are left out: CRIU makes them again. Raises OSError, AgentError.
        """
        deleted = []
        for change in found:
            self._interrupted()
            if change.facts is None:
                deleted.append(f"/{change.path}")
            elif stat.S_IFMT(change.facts.st_mode) in _TYPES:
                facts = change.facts
                self._add(change, facts, ids.uid(facts.st_uid), ids.gid(facts.st_gid))
        return deleted

    def _add(self, change: Change, facts: os.stat_result, uid: int, gid: int) -> None:
        member = tarfile.TarInfo(change.path)
        member.type = _TYPES[stat.S_IFMT(facts.st_mode)]
        member.mode = stat.S_IMODE(facts.st_mode)
        member.uid, member.gid = uid, gid
        member.mtime = facts.st_mtime_ns // 10**9
        member.pax_headers = {
            "mtime": f"{facts.st_mtime_ns // 10**9}.{facts.st_mtime_ns % 10**9:09}",
            **_attributes(change),
        }
        if member.type == tarfile.SYMTYPE:
            member.linkname = os.readlink(change.name, dir_fd=change.directory)
        elif member.type in {tarfile.CHRTYPE, tarfile.BLKTYPE}:
            member.devmajor, member.devminor = os.major(facts.st_rdev), os.minor(facts.st_rdev)
        elif member.type == tarfile.REGTYPE:
            self._add_regular(member, change, facts)
            return
        self._tar.addfile(member)

    def _add_regular(self, member: tarfile.TarInfo, change: Change, facts: os.stat_result) -> None:
        inode = facts.st_dev, facts.st_ino
        if facts.st_nlink > 1 and inode in self._linked:
            member.type, member.linkname = tarfile.LNKTYPE, self._linked[inode]
            self._tar.addfile(member)
            return
        self._linked[inode] = change.path
        fd = os.open(change.name, _READ, dir_fd=change.directory)
        try:
            opened = os.fstat(fd)
            if not stat.S_ISREG(opened.st_mode):
                raise AgentError(f"{change.path[:200]!r} is no longer a regular file")
            member.size = opened.st_size
            self._room.take(member.size)
            source = _Source(fd, member.size, self._interrupted, change.path[:200])
            self._tar.addfile(member, source)  # type: ignore[arg-type] # only `read` is used
        finally:
            os.close(fd)


def _attributes(change: Change) -> dict[str, str]:
    """Extended attributes as pax records, except those that only this node understands."""
    path = f"/proc/self/fd/{change.directory}/{change.name}"
    try:
        names = os.listxattr(path, follow_symlinks=False)
    except OSError:
        return {}  # the file system has none
    return {
        f"SCHILY.xattr.{name}": os.getxattr(path, name, follow_symlinks=False).decode(
            errors="surrogateescape"
        )
        for name in names
        if not name.startswith(_OF_THE_NODE)
    }
