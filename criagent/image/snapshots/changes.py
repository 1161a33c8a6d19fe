# SPDX-License-Identifier: Apache-2.0
"""What a container has changed in its root file system, compared with its image. Synchronous.

Both are mounted, so that it works for every storage driver. An overlay's upper directory saves most
of the work: what it does not have has not changed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator
from typing import NamedTuple

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_REDIRECT = "trusted.overlay.redirect"  # kernel documentation, overlayfs: a renamed directory


class Change(NamedTuple):
    """One path below the root, without a leading slash: its facts now, None = it was deleted.

    `directory` is the open directory that holds `name`, valid until the next change is asked for.
    """

    path: str
    name: str
    directory: int
    facts: os.stat_result | None


class Ids(NamedTuple):
    """How ids of the root file system compare with those of the image: functions of the former."""

    uid: Callable[[int], int]
    gid: Callable[[int], int]


class Trees(NamedTuple):
    """Open directories: the root file system, its image, and the upper directory if there is one.

    They are closed with `close`. `old` or `upper` None: there is none at this place.
    """

    new: int
    old: int | None
    upper: int | None

    def close(self) -> None:
        """Close all three."""
        for fd in self:
            if fd is not None:
                os.close(fd)


def changes(
    trees: Trees, ids: Ids, *, skipped: frozenset[str] = frozenset(), most_depth: int = 1000
) -> Iterator[Change]:
    """Every path that is new, different or deleted, each directory before what is in it.

    Regular files differ if their size or time of modification does, unless they are in the upper
    directory: all of those count. What is at the paths `skipped` is ignored. Raises OSError; ELOOP
    for directories deeper than `most_depth`.
    """
    yield from _Walk(ids, skipped, most_depth).directory(trees, "", 0)


class _Walk:
    def __init__(self, ids: Ids, skipped: frozenset[str], most_depth: int) -> None:
        self._ids = ids
        self._skipped = skipped
        self._most_depth = most_depth

    def directory(self, trees: Trees, path: str, depth: int) -> Iterator[Change]:
        if depth > self._most_depth:
            raise OSError(errno.ELOOP, "too many directories in one another", path[:200])
        now = sorted(os.listdir(trees.new))
        if trees.old is not None:
            gone = sorted(set(os.listdir(trees.old)).difference(now))
            for name in gone:
                inner = f"{path}/{name}".lstrip("/")
                if inner not in self._skipped:
                    yield Change(inner, name, trees.new, None)
        for name in now:
            inner = f"{path}/{name}".lstrip("/")
            if inner not in self._skipped:
                yield from self._entry(trees, inner, name, depth)

    def _entry(self, trees: Trees, path: str, name: str, depth: int) -> Iterator[Change]:
        if trees.upper is not None and _facts(name, trees.upper) is None:
            return
        facts = os.stat(name, dir_fd=trees.new, follow_symlinks=False)
        before = None if trees.old is None else _facts(name, trees.old)
        if before is None or self._differs(trees, name, before, facts):
            yield Change(path, name, trees.new, facts)
        if not stat.S_ISDIR(facts.st_mode):
            return
        below = _below(trees, name, before)
        try:
            yield from self.directory(below, path, depth + 1)
        finally:
            below.close()

    def _differs(
        self, trees: Trees, name: str, before: os.stat_result, now: os.stat_result
    ) -> bool:
        if (
            before.st_mode != now.st_mode
            or before.st_uid != self._ids.uid(now.st_uid)
            or before.st_gid != self._ids.gid(now.st_gid)
            or before.st_rdev != now.st_rdev
        ):
            return True
        if stat.S_ISDIR(now.st_mode):
            return before.st_mtime_ns != now.st_mtime_ns
        if trees.upper is not None:
            return True
        if stat.S_ISLNK(now.st_mode) and trees.old is not None:
            return os.readlink(name, dir_fd=trees.old) != os.readlink(name, dir_fd=trees.new)
        return before.st_size != now.st_size or before.st_mtime_ns != now.st_mtime_ns


def _below(trees: Trees, name: str, before: os.stat_result | None) -> Trees:
    """The directories of that name."""
    with contextlib.ExitStack() as opened:

        def one(parent: int) -> int:
            fd = os.open(name, _DIRECTORY, dir_fd=parent)
            opened.callback(os.close, fd)
            return fd

        new = one(trees.new)
        was_directory = before is not None and stat.S_ISDIR(before.st_mode)
        old = one(trees.old) if trees.old is not None and was_directory else None
        # An upper directory that was renamed does not hold all of what it shows.
        whole = trees.upper is not None and not _renamed(name, trees.upper)
        upper = one(trees.upper) if trees.upper is not None and whole else None
        opened.pop_all()
    return Trees(new, old, upper)


def _renamed(name: str, upper: int) -> bool:
    fd = os.open(name, _DIRECTORY, dir_fd=upper)
    try:
        return bool(os.getxattr(fd, _REDIRECT))
    except OSError as exc:
        if exc.errno in {errno.ENODATA, errno.ENOTSUP}:
            return False
        raise
    finally:
        os.close(fd)


def _facts(name: str, directory: int) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None
