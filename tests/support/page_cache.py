# SPDX-License-Identifier: Apache-2.0
"""How much of files is in the page cache, exactly, whatever else the machine does."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Sequence
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)
_PAGE = mmap.PAGESIZE


def resident(file: Path) -> int:
    """Bytes of it in memory (man 2 mincore)."""
    size = file.stat().st_size
    pages = -(-size // _PAGE)
    found = (ctypes.c_ubyte * pages)()
    with file.open("rb") as opened:
        # Private and writable, since ctypes takes the address of nothing else; it is not written.
        mapped = mmap.mmap(opened.fileno(), size, access=mmap.ACCESS_COPY)
    view = ctypes.c_char.from_buffer(mapped)
    done = _libc.mincore(
        ctypes.c_void_p(ctypes.addressof(view)), ctypes.c_size_t(size), ctypes.byref(found)
    )
    del view
    mapped.close()
    assert done == 0, os.strerror(ctypes.get_errno())
    return sum(page & 1 for page in found) * _PAGE


def evict(file: Path) -> None:
    """Drop its clean pages (man 2 posix_fadvise)."""
    fd = os.open(file, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def held(files: Sequence[Path]) -> int:
    """Bytes of memory that these files have together, evicting one after the other: those that
    share their pages have none when it is their turn."""
    total = 0
    for file in files:
        total += resident(file)
        evict(file)
    return total
