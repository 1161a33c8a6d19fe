# SPDX-License-Identifier: Apache-2.0
"""A layer's tree compared with the same layer, unpacked again: every name, fact and byte.

Runs in the unpack worker; standard library and `kernel.paths` only. Times of directories are not
compared: what a layer only implies has none of its own.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import NamedTuple

from criagent.image.snapshots.content_count import attributes
from criagent.image.tar.names import shown
from criagent.kernel.paths import RESOLVE_IN_ROOT, RESOLVE_NO_SYMLINKS, openat2

_NAMED = 5  # differences that are described
_CHUNK = 1 << 20
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_TYPES = {
    stat.S_IFREG: "a file",
    stat.S_IFDIR: "a directory",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
}


class Differences(NamedTuple):
    """The first few as texts, and how many there are; a missing directory counts as one."""

    first: list[str]
    total: int

    def __str__(self) -> str:
        more = self.total - len(self.first)
        return "; ".join([*self.first, *([f"{more} more differences"] if more else [])])


def compare(root: Path, expected: Path) -> Differences:
    """How the tree below `root` differs from the one below `expected`. Raises OSError."""
    found = _Found()
    top = os.open(root, _DIRECTORY)
    try:
        own = os.open(expected, _DIRECTORY)
        try:
            _facts(found, b"/", os.fstat(top), os.fstat(own))
        finally:
            os.close(own)
        for here, directories, files, fd in os.fwalk(
            expected, follow_symlinks=False, onerror=_raise
        ):
            place = os.path.relpath(here, expected)
            resolve = RESOLVE_IN_ROOT | RESOLVE_NO_SYMLINKS
            other = openat2(top, place, _DIRECTORY, resolve)
            try:
                names = {*directories, *files}
                same = _listed(found, other, place, names)
                # what is there and not a directory in both is not entered
                both = [name for name in sorted(same) if _pair(found, (other, fd), place, name)]
                directories[:] = [name for name in directories if name in both]
            finally:
                os.close(other)
    finally:
        os.close(top)
    return Differences(found.first, found.total)


class _Found:
    def __init__(self) -> None:
        self.first: list[str] = []
        self.total = 0

    def add(self, path: bytes, text: str) -> None:
        self.total += 1
        if len(self.first) < _NAMED:
            self.first.append(f"{shown(path)} {text}")


def _listed(found: _Found, other: int, place: str, names: set[str]) -> set[str]:
    """The names in both directories."""
    there = set(os.listdir(other))
    for name in sorted(names - there):
        found.add(_path(place, name), "is missing")
    for name in sorted(there - names):
        found.add(_path(place, name), "was added")
    return names & there


def _pair(found: _Found, directories: tuple[int, int], place: str, name: str) -> bool:
    """Compare one name of both directories; whether it is a directory in both."""
    path = _path(place, name)
    one, other = (os.stat(name, dir_fd=fd, follow_symlinks=False) for fd in directories)
    before = found.total
    _facts(found, path, one, other)
    if stat.S_IFMT(one.st_mode) != stat.S_IFMT(other.st_mode):
        return False
    if stat.S_ISLNK(one.st_mode):
        if len({os.readlink(name, dir_fd=fd) for fd in directories}) > 1:
            found.add(path, "leads elsewhere")
    elif stat.S_ISREG(one.st_mode) and found.total == before and not _equal(directories, name):
        found.add(path, "has another content")
    if len({tuple(attributes(fd, name)) for fd in directories}) > 1:
        found.add(path, "has other extended attributes")
    return stat.S_ISDIR(one.st_mode)


def _facts(found: _Found, path: bytes, one: os.stat_result, other: os.stat_result) -> None:
    """Type, mode, owner, size or device; at most one difference is named."""
    kind = stat.S_IFMT(one.st_mode)
    if kind != stat.S_IFMT(other.st_mode):
        kinds = [_TYPES.get(stat.S_IFMT(facts.st_mode), "unknown") for facts in (one, other)]
        found.add(path, f"is {kinds[0]} instead of {kinds[1]}")
    elif stat.S_IMODE(one.st_mode) != stat.S_IMODE(other.st_mode):
        modes = [f"{stat.S_IMODE(facts.st_mode):04o}" for facts in (one, other)]
        found.add(path, f"has mode {modes[0]} instead of {modes[1]}")
    elif (one.st_uid, one.st_gid) != (other.st_uid, other.st_gid):
        owners = [f"{facts.st_uid}:{facts.st_gid}" for facts in (one, other)]
        found.add(path, f"has owner {owners[0]} instead of {owners[1]}")
    elif kind == stat.S_IFREG and one.st_size != other.st_size:
        found.add(path, f"has {one.st_size} bytes instead of {other.st_size}")
    elif kind in {stat.S_IFCHR, stat.S_IFBLK} and one.st_rdev != other.st_rdev:
        found.add(path, "is another device")


def _equal(directories: tuple[int, int], name: str) -> bool:
    files = [os.open(name, _FILE, dir_fd=directory) for directory in directories]
    try:
        while True:
            one, other = (os.read(file, _CHUNK) for file in files)
            if one != other:
                return False
            if not one:
                return True
    finally:
        for file in files:
            os.close(file)


def _path(place: str, name: str) -> bytes:
    return os.path.normpath(os.path.join(os.fsencode(place), os.fsencode(name)))


def _raise(error: OSError) -> None:
    raise error
