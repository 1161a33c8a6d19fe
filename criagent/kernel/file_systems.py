# SPDX-License-Identifier: Apache-2.0
"""What a directory's file system is, and what is free on it. Synchronous, no policy."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from pathlib import Path

from criagent.kernel.mount import holder_of
from criagent.kernel.syscalls import libc

_UNKNOWN = 0  # DT_UNKNOWN
_TYPE_AT = 18  # of d_type in glibc's struct dirent with 64-bit offsets

libc.opendir.restype = ctypes.c_void_p
libc.readdir.restype = ctypes.c_void_p
libc.readdir.argtypes = (ctypes.c_void_p,)
libc.closedir.argtypes = (ctypes.c_void_p,)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSystem:
    """A mounted file system. Without a fixed number of inodes `inodes` is 0."""

    type: str
    source: str
    mountpoint: str
    total_bytes: int
    free_bytes: int  # for root
    inodes: int
    free_inodes: int
    d_type: bool  # directories tell the type of their entries, which overlayfs needs


def file_system(directory: Path) -> FileSystem:
    """The one that holds `directory`. Raises OSError."""
    size = os.statvfs(directory)
    entry = holder_of(directory)
    return FileSystem(
        type=entry.fstype if entry else "",
        source=entry.source if entry else "",
        mountpoint=entry.target if entry else "",
        total_bytes=size.f_blocks * size.f_frsize,
        free_bytes=size.f_bfree * size.f_frsize,
        inodes=size.f_files,
        free_inodes=size.f_ffree,
        d_type=has_d_type(directory),
    )


def has_d_type(directory: Path) -> bool:
    """Whether readdir(3) tells the type of every entry, "." included. Raises OSError."""
    stream = libc.opendir(os.fsencode(directory))
    if not stream:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(directory))
    try:
        while entry := libc.readdir(stream):
            if ctypes.c_ubyte.from_address(entry + _TYPE_AT).value == _UNKNOWN:
                return False
        return True
    finally:
        libc.closedir(stream)
