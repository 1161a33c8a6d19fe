# SPDX-License-Identifier: Apache-2.0
"""Files in memory (man 2 memfd_create, F_ADD_SEALS). Synchronous, no policy."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

# fcntl(2): F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE
_ALL_SEALS = 0x1 | 0x2 | 0x4 | 0x8
_CHUNK = 1 << 20


def data_file(name: str, data: bytes) -> int:
    """A descriptor to read `data` from; unlike a pipe it takes any size at once, read or not."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC)
    try:
        with os.fdopen(fd, "wb", closefd=False) as file:
            file.write(data)
        os.lseek(fd, 0, os.SEEK_SET)
    except BaseException:
        os.close(fd)
        raise
    return fd


def sealed_copy(path: Path) -> int:
    """A descriptor of an immutable copy of `path`."""
    fd = os.memfd_create(path.name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                os.write(fd, chunk)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _ALL_SEALS)
    except BaseException:
        os.close(fd)
        raise
    return fd
