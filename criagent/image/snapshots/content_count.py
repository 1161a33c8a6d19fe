# SPDX-License-Identifier: Apache-2.0
"""The content of a layer's tree, in figures that stay the same while it is not changed.

Unlike disk usage (`tree_count.py`), they do not depend on the file system. The unpack worker counts
a new layer, most of them while it writes them (`ContentRecord`); fsck counts them again. Standard
library only.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

# Labels belong to the node, which may change them; the others are overlayfs' own notes, of which
# only one is part of the layer (kernel documentation, overlayfs).
_NOT_CONTENT = ("security.selinux", "trusted.overlay.", "user.overlay.")
_OPAQUE = ("trusted.overlay.opaque", "user.overlay.opaque")
_NO_ATTRIBUTES = {errno.EOPNOTSUPP, errno.EPERM}
_UNREADABLE = {errno.EINVAL, errno.ENODATA, *_NO_ATTRIBUTES}  # empty capabilities
_RECORDED = 400_000  # names; some 100 MB


class ContentCount(NamedTuple):
    """How many names a tree has, how many bytes its regular files by each name, and the digest of
    the types, owners, modes, sizes, times in seconds, targets and extended attributes of all.
    """

    names: int
    size: int
    facts: str = ""


def content_count(top: Path) -> ContentCount:
    """Count everything below `top`, and describe `top` itself.

    Links are not followed. Raises OSError.
    """
    names = size = 0
    digest = hashlib.sha256()
    for _, directories, files, fd in os.fwalk(top, follow_symlinks=False, onerror=_raise):
        directories.sort()  # the order in which they are visited
        if not names:
            own = os.fstat(fd)
            digest.update(b"%o %d %d" % (own.st_mode, own.st_uid, own.st_gid))
        digest.update(b"\0\0")  # the end of what came before
        for name in sorted((*directories, *files)):
            found = os.stat(name, dir_fd=fd, follow_symlinks=False)
            if stat.S_ISREG(found.st_mode):
                size += found.st_size
            names += 1
            digest.update(_described(fd, name, found))
    return ContentCount(names, size, digest.hexdigest())


class ContentRecord:
    """What `content_count` would find of a tree, noted while that is written.

    For a writer that makes every name once and removes none; directories are added last, when
    nothing changes them any more. `full` says that there are too many names to hold.
    """

    def __init__(self) -> None:
        self.full = False
        self._names = 0
        self._size = 0
        self._below: dict[bytes, dict[bytes, bytes]] = {}
        self._directories: set[bytes] = set()

    def add(self, above: bytes, name: bytes, found: os.stat_result, rest: bytes = b"") -> None:
        """Note `name` in the directory with the path `above`; `rest` is its `rest_of`."""
        self._names += 1
        if self._names > _RECORDED:
            self.full = True
            self._below.clear()
        if self.full:
            return
        if stat.S_ISREG(found.st_mode):
            self._size += found.st_size
        elif stat.S_ISDIR(found.st_mode):
            self._directories.add(above + b"/" + name if above else name)
        self._below.setdefault(above, {})[name] = _facts(name, found) + rest + b"\0"

    def count(self, own: os.stat_result) -> ContentCount:
        """All that was noted, below a top whose status is `own`."""
        digest = hashlib.sha256(b"%o %d %d" % (own.st_mode, own.st_uid, own.st_gid))
        names, todo = 0, [b""]
        while todo:
            path = todo.pop()
            here = self._below.get(path, {})
            order = sorted(here, key=os.fsdecode)
            names += len(order)
            digest.update(b"\0\0" + b"".join(map(here.__getitem__, order)))
            below = (path + b"/" + name if path else name for name in reversed(order))
            todo += [child for child in below if child in self._directories]
        return ContentCount(names, self._size, digest.hexdigest())


def _described(directory: int, name: str, found: os.stat_result) -> bytes:
    return _facts(os.fsencode(name), found) + rest_of(directory, name, found) + b"\0"


def _facts(name: bytes, found: os.stat_result) -> bytes:
    mode = found.st_mode
    return b"%b\0%o %d %d %d %d %d" % (
        name,
        mode,
        found.st_uid,
        found.st_gid,
        found.st_size if stat.S_ISREG(mode) else 0,
        found.st_rdev if stat.S_ISCHR(mode) or stat.S_ISBLK(mode) else 0,
        int(found.st_mtime),
    )


def rest_of(directory: int, name: str, found: os.stat_result) -> bytes:
    """The target and the extended attributes of a name, as the digest has them. Raises OSError."""
    text = b""
    if stat.S_ISLNK(found.st_mode):
        text += b"\0" + os.fsencode(os.readlink(name, dir_fd=directory))
    for key, value in attributes(directory, name):
        text += b"\0%b=%d:%b" % (os.fsencode(key), len(value), value)
    return text


def attributes(directory: int, name: str) -> Iterator[tuple[str, bytes]]:
    """The extended attributes of a name that are part of a layer, sorted. Raises OSError."""
    path = f"/proc/self/fd/{directory}/{name}"
    try:
        keys = os.listxattr(path, follow_symlinks=False)
    except OSError as exc:
        if exc.errno not in _NO_ATTRIBUTES:
            raise
        return
    for key in sorted(keys):
        if key.startswith(_NOT_CONTENT) and key not in _OPAQUE:
            continue
        try:
            yield key, os.getxattr(path, key, follow_symlinks=False)
        except OSError as exc:
            if exc.errno not in _UNREADABLE:
                raise
            yield key, b""


def _raise(error: OSError) -> None:
    raise error
