"""Trees of files deleted, however deep: containers make directories as they like.

shutil.rmtree recurses before Python 3.13, and a thousand directories in one another end it.
Synchronous; imports nothing heavy.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
from collections.abc import Iterator

_DEEPEST = 200  # directories open at once
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_Entries = list[tuple[str, bool]]  # names, and whether they are directories


def remove_tree(path: str | os.PathLike[str], *, dir_fd: int | None = None) -> None:
    """Delete the directory `path` and everything in it; no symlink is followed.

    A directory that lies too deep is first renamed to the top of the tree, so that neither the
    stack nor the open descriptors grow with the depth. What is gone is fine: several may delete a
    tree at once. Raises OSError.
    """
    try:
        top = os.open(path, _DIRECTORY, dir_fd=dir_fd)
    except FileNotFoundError:
        return
    numbers = itertools.count()
    try:
        while entries := _entries(top):
            _empty(top, entries, numbers)
    finally:
        os.close(top)
    _rmdir(path, dir_fd)


def _empty(top: int, entries: _Entries, numbers: Iterator[int]) -> None:
    stack = [(top, "", entries)]
    try:
        while stack:
            here, name, left = stack[-1]
            if left:
                entry, is_directory = left.pop()
                if not is_directory:
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(entry, dir_fd=here)
                elif len(stack) > _DEEPEST:
                    _move(here, entry, top, numbers)
                else:
                    with contextlib.suppress(FileNotFoundError):
                        child = os.open(entry, _DIRECTORY, dir_fd=here)
                        stack.append((child, entry, _entries(child)))
                continue
            stack.pop()
            if stack:
                os.close(here)
                _rmdir(name, stack[-1][0])
    finally:
        for fd, _, _ in stack[1:]:
            os.close(fd)


def _rmdir(name: str | os.PathLike[str], parent: int | None) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.rmdir(name, dir_fd=parent)


def _entries(directory: int) -> _Entries:
    with os.scandir(directory) as found:
        return [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in found]


def _move(parent: int, name: str, top: int, numbers: Iterator[int]) -> None:
    """Rename a directory to a free name at the top."""
    for number in numbers:
        try:
            os.rename(name, f".deep-{number}", src_dir_fd=parent, dst_dir_fd=top)
        except OSError as exc:
            if exc.errno == errno.ENOENT:
                return
            if exc.errno not in {errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR}:
                raise
        else:
            return
