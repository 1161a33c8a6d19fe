# SPDX-License-Identifier: Apache-2.0
"""Subvolumes of btrfs by ioctl(2), without btrfs-progs (include/uapi/linux/btrfs.h).

A subvolume is named by an id that its file system never uses again. Synchronous, no policy.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from criagent.kernel.syscalls import check, libc

TOP_INODE: Final = 256  # of each subvolume's own directory (BTRFS_FIRST_FREE_OBJECTID)

_SUPER_MAGIC = 0x9123683E
_NAME_BYTES = 255
_ROOT_TREE = 1
_ROOT_ITEM, _ROOT_REF = 132, 156  # types of keys in the tree of roots
_READONLY = 1 << 1
_BY_ID = 1 << 4
_ARGS_BYTES = 4096
_SEARCH_KEY = struct.Struct("=7Q3I4x4Q")
_SEARCH_ITEM = struct.Struct("=3Q2I")
_HANDLE = struct.Struct("=IiQQI")
_HANDLE_BYTES, _HANDLE_TYPE = 20, 0x4D  # FILEID_BTRFS_WITHOUT_PARENT
_LAST = 2**64 - 1


def _request(direction: int, number: int, size: int) -> int:
    return direction << 30 | size << 16 | 0x94 << 8 | number


_READ, _WRITE = 2, 1
_SYNC = _request(0, 8, 0)
_TREE_SEARCH = _request(_READ | _WRITE, 17, _ARGS_BYTES)
_SNAP_CREATE_V2 = _request(_WRITE, 23, _ARGS_BYTES)
_SUBVOL_CREATE_V2 = _request(_WRITE, 24, _ARGS_BYTES)
_SUBVOL_GETFLAGS = _request(_READ, 25, 8)
_SUBVOL_SETFLAGS = _request(_WRITE, 26, 8)
_SUBVOL_INFO = _request(_READ, 60, 504)
_SNAP_DESTROY_V2 = _request(_WRITE, 63, _ARGS_BYTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Subvolume:
    """What the kernel tells of a subvolume; `made_at_ns` is since the epoch."""

    id: int
    made_at_ns: int


def is_btrfs(path: Path) -> bool:
    """Whether `path` is on btrfs. Raises OSError."""
    buffer = ctypes.create_string_buffer(256)  # struct statfs begins with the type, a long
    check(libc.statfs(os.fsencode(path), buffer), "statfs", path)
    return ctypes.c_long.from_buffer(buffer).value & 0xFFFFFFFF == _SUPER_MAGIC


def create(directory: int, name: str) -> None:
    """A new empty subvolume in the open `directory`."""
    _ioctl(directory, _SUBVOL_CREATE_V2, _named(name), name)


def snapshot(source: int, directory: int, name: str) -> None:
    """A writable snapshot of the open subvolume `source`; not of those that are nested in it."""
    _ioctl(directory, _SNAP_CREATE_V2, _named(name, source=source), name)


def info(subvolume: int) -> Subvolume:
    """What the subvolume is that holds the open file. Raises OSError."""
    answer = _ioctl(subvolume, _SUBVOL_INFO, bytearray(504))
    (number,) = struct.unpack_from("=Q", answer)
    seconds, nanoseconds = struct.unpack_from("=QI", answer, 392)
    return Subvolume(id=number, made_at_ns=seconds * 10**9 + nanoseconds)


def readonly(subvolume: int) -> bool:
    """Whether nobody may write to the open subvolume."""
    (flags,) = struct.unpack("=Q", _ioctl(subvolume, _SUBVOL_GETFLAGS, bytearray(8)))
    return bool(flags & _READONLY)


def set_readonly(subvolume: int, *, wanted: bool) -> None:
    """Set or clear that property; idempotent. Raises EINVAL where none is open."""
    (flags,) = struct.unpack("=Q", _ioctl(subvolume, _SUBVOL_GETFLAGS, bytearray(8)))
    if bool(flags & _READONLY) != wanted:
        _ioctl(subvolume, _SUBVOL_SETFLAGS, bytearray(struct.pack("=Q", flags ^ _READONLY)))


def open_by_id(place: int, number: int) -> int:
    """A descriptor of the directory of the subvolume `number`, however deep it lies.

    `place` is any open directory of the file system. Needs CAP_DAC_READ_SEARCH (man 2
    open_by_handle_at). Raises OSError, ESTALE when it does not exist.
    """
    handle = _HANDLE.pack(_HANDLE_BYTES, _HANDLE_TYPE, TOP_INODE, number, 0)
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    return check(libc.open_by_handle_at(place, handle, flags), "open_by_handle_at", number)


def nested(place: int, number: int) -> Iterator[int]:
    """Ids of the subvolumes directly in the subvolume `number`. Needs CAP_SYS_ADMIN."""
    return (offset for _, offset in _search(place, _ROOT_REF, number))


def exists(place: int, number: int) -> bool:
    """Whether the file system still has blocks of the subvolume `number`, deleted or not."""
    return any(True for _ in _search(place, _ROOT_ITEM, number))


def destroy(place: int, number: int) -> None:
    """Delete the subvolume `number`, read-only or not; its space returns later.

    Raises OSError, ENOTEMPTY while others are nested in it, EROFS if the one that it is nested in
    is read-only.
    """
    args = struct.pack_into
    buffer = bytearray(_ARGS_BYTES)
    args("=Q", buffer, 16, _BY_ID)
    args("=Q", buffer, 56, number)
    _ioctl(place, _SNAP_DESTROY_V2, buffer, str(number))


def destroy_all(place: int, number: int) -> list[int]:
    """Delete the subvolume `number` with all that are nested in it; the ids of what was deleted.

    What containers have nested may be deep, many, and read-only. Raises OSError.
    """
    gone: list[int] = []
    waiting = [(number, False)]
    while waiting:
        one, emptied = waiting.pop()
        inside = [] if emptied else list(nested(place, one))
        if not inside:
            destroy(place, one)
            gone.append(one)
            continue
        _make_writable(place, one)
        waiting.append((one, True))
        waiting += [(child, False) for child in inside]
    return gone


def sync(place: int) -> None:
    """Commit what was changed, and wake the kernel's thread that frees deleted subvolumes."""
    try:
        fcntl.ioctl(place, _SYNC)
    except OSError as exc:
        raise OSError(exc.errno, f"ioctl of btrfs: {exc.strerror}") from exc


def _make_writable(place: int, number: int) -> None:
    fd = open_by_id(place, number)
    try:
        set_readonly(fd, wanted=False)
    finally:
        os.close(fd)


def _named(name: str, source: int = 0) -> bytearray:
    encoded = os.fsencode(name)
    if len(encoded) > _NAME_BYTES:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), name)
    buffer = bytearray(_ARGS_BYTES)
    struct.pack_into("=q", buffer, 0, source)
    buffer[56 : 56 + len(encoded)] = encoded
    return buffer


def _search(place: int, kind: int, number: int) -> Iterator[tuple[int, int]]:
    """Items of the tree of roots that have this kind of key: their object and offset."""
    offset = 0
    while True:
        buffer = bytearray(_ARGS_BYTES)
        key = (_ROOT_TREE, number, number, offset, _LAST, 0, _LAST, kind, kind, 4096, 0, 0, 0, 0)
        _SEARCH_KEY.pack_into(buffer, 0, *key)
        answer = _ioctl(place, _TREE_SEARCH, buffer)
        found = _SEARCH_KEY.unpack_from(answer)[9]
        at = _SEARCH_KEY.size
        for _ in range(found):
            _, item, offset, _, length = _SEARCH_ITEM.unpack_from(answer, at)
            yield item, offset
            at += _SEARCH_ITEM.size + length
        if not found or offset == _LAST:
            return
        offset += 1


def _ioctl(fd: int, request: int, buffer: bytearray, what: str | None = None) -> bytearray:
    try:
        fcntl.ioctl(fd, request, buffer)
    except OSError as exc:
        raise OSError(exc.errno, f"ioctl of btrfs: {exc.strerror}", what) from exc
    return buffer
