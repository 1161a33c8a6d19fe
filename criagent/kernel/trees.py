# SPDX-License-Identifier: Apache-2.0
"""Deletes trees of files, however deep: containers create directories as they like.

shutil.rmtree recurses before Python 3.13, and a thousand nested directories end it. Synchronous;
imports nothing heavy.
"""

from __future__ import annotations

import contextlib
import errno
import os
from dataclasses import dataclass

_OPEN = 200  # directories open at once
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_Entries = list[tuple[str, bool]]  # names, and whether they are directories


@dataclass(slots=True)
class _Level:
    """A directory on the way down; `fd` is -1 while it is closed."""

    fd: int
    name: str
    left: _Entries
    identity: tuple[int, int]

    @classmethod
    def open(cls, name: str, parent: int) -> _Level:
        fd = os.open(name, _DIRECTORY, dir_fd=parent)
        try:
            return cls(fd, name, _entries(fd), _identity(fd))
        except BaseException:
            os.close(fd)
            raise


def remove_tree(path: str | os.PathLike[str], *, dir_fd: int | None = None) -> None:
    """Delete the directory `path` and everything in it; no symlink is followed.

    Neither the stack nor the open descriptors grow with the depth: directories far above are closed
    and found again by "..", which must be the directory that was left. Missing entries are no
    error: several callers may delete a tree at once. Raises OSError, ESTALE when a directory was
    moved meanwhile.
    """
    try:
        top = os.open(path, _DIRECTORY, dir_fd=dir_fd)
    except FileNotFoundError:
        return
    try:
        while entries := _entries(top):
            _empty(_Level(top, "", entries, _identity(top)))
    finally:
        os.close(top)
    _rmdir(path, dir_fd)


def _empty(top: _Level) -> None:
    levels = [top]
    try:
        while levels:
            here = levels[-1]
            if here.left:
                name, is_directory = here.left.pop()
                with contextlib.suppress(FileNotFoundError):
                    if is_directory:
                        levels.append(_Level.open(name, here.fd))
                    else:
                        os.unlink(name, dir_fd=here.fd)
                if len(levels) > _OPEN:
                    _close(levels[-_OPEN])
                continue
            if len(levels) > 1:
                _reopen(levels[-2], here.fd)
                _close(here)
                _rmdir(here.name, levels[-2].fd)
            levels.pop()
    finally:
        for level in levels[1:]:
            _close(level)


def _reopen(level: _Level, child: int) -> None:
    if level.fd >= 0:
        return
    level.fd = os.open("..", _DIRECTORY, dir_fd=child)
    if _identity(level.fd) != level.identity:
        raise OSError(
            errno.ESTALE, "the directory was moved while it was being deleted", level.name
        )


def _close(level: _Level) -> None:
    if level.fd >= 0:
        os.close(level.fd)
        level.fd = -1


def _rmdir(name: str | os.PathLike[str], parent: int | None) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.rmdir(name, dir_fd=parent)


def _entries(directory: int) -> _Entries:
    with os.scandir(directory) as found:
        return [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in found]


def _identity(directory: int) -> tuple[int, int]:
    facts = os.fstat(directory)
    return facts.st_dev, facts.st_ino
