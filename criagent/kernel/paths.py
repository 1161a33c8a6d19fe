# SPDX-License-Identifier: Apache-2.0
"""Paths that an image or a pod controls: opened within their root, by openat2(2) alone."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import time
from pathlib import Path

from criagent.kernel.syscalls import syscall

RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_IN_ROOT = 0x10

_OPENAT2 = 437
# Renames of processes that share the CPU with this one can spoil hundreds of tries in a row:
# a number of tries would be the attacker's to use up. The longest wait seen in a storm was 0.2 s.
_TRY_FOR_S = 2.0


class _OpenHow(ctypes.Structure):
    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


def openat2(root: int, path: str | bytes, flags: int, resolve: int, mode: int = 0) -> int:
    """openat2(2); the new descriptor is close-on-exec.

    A rename or mount anywhere on the machine makes the kernel answer EAGAIN to a path with "..".
    That is tried again here for 2 s, so only an endless storm of them reaches the caller as EAGAIN.
    """
    how = _OpenHow(flags | os.O_CLOEXEC, mode, resolve)
    values = (root, os.fsencode(path), ctypes.byref(how), ctypes.sizeof(how))
    end = 0.0
    while True:
        try:
            return syscall(_OPENAT2, "openat2", *values, source=path)
        except BlockingIOError:
            now = time.monotonic()
            end = end or now + _TRY_FOR_S
            if now > end:
                raise
            os.sched_yield()  # whoever renames may be waiting for this CPU


def open_in_root(root: int, path: str | bytes, flags: int, mode: int = 0) -> int:
    """Open `path` as if `root` were "/": no link, magic link or ".." leads out of it."""
    return openat2(root, path, flags, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS, mode)


def read_in_root(root: Path, path: str, limit: int) -> bytes:
    """Content of the regular file `path` within `root`.

    Raises FileNotFoundError, and OSError EFBIG for more than `limit` bytes, EINVAL for anything
    that is not a regular file. A device or FIFO is never opened: that alone can have effects.
    """
    directory = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        found = open_in_root(directory, path, os.O_PATH)
    finally:
        os.close(directory)
    try:
        facts = os.fstat(found)
        if not stat.S_ISREG(facts.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", path)
        fd = os.open(f"/proc/self/fd/{found}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    finally:
        os.close(found)
    with os.fdopen(fd, "rb") as file:
        if facts.st_size > limit or len(content := file.read(limit + 1)) > limit:
            raise OSError(errno.EFBIG, f"larger than {limit} bytes", path)
        return content
