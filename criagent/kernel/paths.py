"""Paths that an image or a pod controls: opened within their root, by openat2(2) alone."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from pathlib import Path

from criagent.kernel.syscalls import syscall

RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_IN_ROOT = 0x10

_OPENAT2 = 437


class _OpenHow(ctypes.Structure):
    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


def openat2(root: int, path: str | bytes, flags: int, resolve: int, mode: int = 0) -> int:
    """openat2(2); the new descriptor is close-on-exec."""
    how = _OpenHow(flags | os.O_CLOEXEC, mode, resolve)
    size = ctypes.sizeof(how)
    return syscall(
        _OPENAT2, "openat2", root, os.fsencode(path), ctypes.byref(how), size, source=path
    )


def open_in_root(root: int, path: str | bytes, flags: int, mode: int = 0) -> int:
    """Open `path` as if `root` were "/": no link, magic or "..", leads out of it."""
    return openat2(root, path, flags, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS, mode)


def read_in_root(root: Path, path: str, limit: int) -> bytes:
    """Content of the regular file `path` within `root`.

    Raises FileNotFoundError, and OSError EFBIG for more than `limit` bytes, EINVAL for anything
    that is no regular file. Never blocks on a FIFO or a device.
    """
    directory = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fd = open_in_root(directory, path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    finally:
        os.close(directory)
    with os.fdopen(fd, "rb") as file:
        facts = os.fstat(file.fileno())
        if not stat.S_ISREG(facts.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", path)
        if facts.st_size > limit or len(content := file.read(limit + 1)) > limit:
            raise OSError(errno.EFBIG, f"larger than {limit} bytes", path)
        return content
