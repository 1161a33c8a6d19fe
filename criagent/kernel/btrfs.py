# SPDX-License-Identifier: Apache-2.0
"""Subvolumes of btrfs by ioctl(2), without btrfs-progs (include/uapi/linux/btrfs.h).

A subvolume is named by an id that its file system never uses again. Synchronous, no policy.
"""

from __future__ import annotations

import contextlib
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
_ROOT_ITEM, _ROOT_BACKREF, _ROOT_REF = 132, 144, 156  # types of keys in the tree of roots
_READONLY = 1 << 1
_PURPOSES = {1: "data", 4: "metadata"}  # of chunks of disk; small file systems have both in one
_RESERVE = 1 << 49
_SPACES = 16
_ARGS_BYTES = 4096
_SEARCH_KEY = struct.Struct("=7Q3I4x4Q")
_SEARCH_ITEM = struct.Struct("=3Q2I")
_HANDLE = struct.Struct("=IiQQI")
_HANDLE_BYTES, _HANDLE_TYPE = 20, 0x4D  # FILEID_BTRFS_WITHOUT_PARENT
_REFERENCE = struct.Struct("<QQH")  # and the name
_LAST, _BYTE = 2**64 - 1, 255
_SEARCH_BYTES = 65536  # no block of a tree is larger, so no item is
_Key = tuple[int, int, int]  # object, type, offset


def request(direction: int, number: int, size: int) -> int:
    """The number of an ioctl of btrfs; 1 = the kernel reads its argument, 2 = writes, 3 = both."""
    return direction << 30 | size << 16 | 0x94 << 8 | number


_READ, _WRITE = 2, 1
_SYNC = request(0, 8, 0)
_WAIT_SYNC = request(_WRITE, 22, 8)
_START_SYNC = request(_READ, 24, 8)
_TREE_SEARCH_V2 = request(_READ | _WRITE, 17, 112)
_DEV_INFO = request(_READ | _WRITE, 30, _ARGS_BYTES)
_FS_INFO = request(_READ, 31, 1024)
_SPACE_INFO = request(_READ | _WRITE, 20, 16)
_SNAP_CREATE_V2 = request(_WRITE, 23, _ARGS_BYTES)
_SUBVOL_CREATE_V2 = request(_WRITE, 24, _ARGS_BYTES)
_SUBVOL_GETFLAGS = request(_READ, 25, 8)
_SUBVOL_SETFLAGS = request(_WRITE, 26, 8)
_SUBVOL_INFO = request(_READ, 60, 504)
_SNAP_DESTROY_V2 = request(_WRITE, 63, _ARGS_BYTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Subvolume:
    """What the kernel tells of a subvolume: `made_by` is the transaction that made it."""

    id: int
    made_by: int


def is_btrfs(path: Path) -> bool:
    """Whether `path` is on btrfs. Raises OSError."""
    buffer = ctypes.create_string_buffer(256)  # struct statfs begins with the type, a long
    check(libc.statfs(os.fsencode(path), buffer), "statfs", path)
    return ctypes.c_long.from_buffer(buffer).value & 0xFFFFFFFF == _SUPER_MAGIC


def create(directory: int, name: str) -> None:
    """A new empty subvolume in the open `directory`."""
    ioctl(directory, _SUBVOL_CREATE_V2, _named(name), name)


def snapshot(source: int, directory: int, name: str) -> None:
    """A writable snapshot of the open subvolume `source`; not of those that are nested in it."""
    ioctl(directory, _SNAP_CREATE_V2, _named(name, source=source), name)


def info(subvolume: int) -> Subvolume:
    """What the subvolume is that holds the open file. Raises OSError."""
    answer = ioctl(subvolume, _SUBVOL_INFO, bytearray(504))
    (number,) = struct.unpack_from("=Q", answer)
    (made_by,) = struct.unpack_from("=Q", answer, 352)
    return Subvolume(id=number, made_by=made_by)


def readonly(subvolume: int) -> bool:
    """Whether nobody may write to the open subvolume."""
    (flags,) = struct.unpack("=Q", ioctl(subvolume, _SUBVOL_GETFLAGS, bytearray(8)))
    return bool(flags & _READONLY)


def set_readonly(subvolume: int, *, wanted: bool) -> None:
    """Set or clear that property; idempotent. Raises EINVAL where none is open."""
    (flags,) = struct.unpack("=Q", ioctl(subvolume, _SUBVOL_GETFLAGS, bytearray(8)))
    if bool(flags & _READONLY) != wanted:
        ioctl(subvolume, _SUBVOL_SETFLAGS, bytearray(struct.pack("=Q", flags ^ _READONLY)))


def open_by_id(place: int, number: int, inode: int = TOP_INODE) -> int:
    """A descriptor of a directory of the subvolume `number`, by default its top, however deep.

    `place` is any open directory of the file system. Needs CAP_DAC_READ_SEARCH (man 2
    open_by_handle_at). Raises OSError, ESTALE when it does not exist.
    """
    handle = _HANDLE.pack(_HANDLE_BYTES, _HANDLE_TYPE, inode, number, 0)
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    return check(libc.open_by_handle_at(place, handle, flags), "open_by_handle_at", number)


def nested(place: int, number: int) -> Iterator[int]:
    """Ids of the subvolumes directly in the subvolume `number`. Needs CAP_SYS_ADMIN."""
    return (item.offset for item in search(place, (_ROOT_TREE, number, _ROOT_REF)))


def exists(place: int, number: int) -> bool:
    """Whether the file system still has blocks of the subvolume `number`, deleted or not."""
    return any(True for _ in search(place, (_ROOT_TREE, number, _ROOT_ITEM)))


def destroy(place: int, number: int) -> None:
    """Delete the subvolume `number`, read-only or not; its space returns later. Idempotent.

    By its name in its directory: by its id the kernel takes no paths longer than PATH_MAX. Raises
    OSError, ENOTEMPTY while others are nested in it, EROFS if the one that it is nested in is
    read-only.
    """
    for item in search(place, (_ROOT_TREE, number, _ROOT_BACKREF)):
        inode, _, length = _REFERENCE.unpack_from(item.data)
        name = item.data[_REFERENCE.size : _REFERENCE.size + length]
        parent = open_by_id(place, item.offset, inode)
        try:
            ioctl(parent, _SNAP_DESTROY_V2, _named(name), str(number))
        finally:
            os.close(parent)


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


def space(place: int) -> dict[str, tuple[int, int]]:
    """Bytes used and set aside, before copies (DUP), of "data", "metadata" or both in one, and of
    the "reserve" within metadata, which the kernel keeps for deletions.
    """
    found: dict[str, tuple[int, int]] = {}
    buffer = bytearray(16 + 24 * _SPACES)
    struct.pack_into("=Q", buffer, 0, _SPACES)
    answer = ioctl(place, _SPACE_INFO, buffer)
    (count,) = struct.unpack_from("=Q", answer, 8)
    for at in range(count):
        flags, total, used = struct.unpack_from("=3Q", answer, 16 + 24 * at)
        names = [name for bit, name in _PURPOSES.items() if flags & bit]
        if flags & _RESERVE:
            found["reserve"] = (used, total)
        elif names:
            found[" and ".join(names)] = (used, total)
    return found


def unallocated(place: int) -> int:
    """Bytes of the devices that are set aside for nothing yet."""
    highest, devices = struct.unpack_from("=QQ", ioctl(place, _FS_INFO, bytearray(1024)))
    free = number = 0
    while devices and number <= highest:
        buffer = bytearray(_ARGS_BYTES)
        struct.pack_into("=Q", buffer, 0, number)
        number += 1
        with contextlib.suppress(OSError):  # numbers of devices have gaps
            used, total = struct.unpack_from("=QQ", ioctl(place, _DEV_INFO, buffer), 24)
            free += total - used
            devices -= 1
    return free


def commit(place: int) -> None:
    """Commit the running transaction and wait for it: metadata, and no data of files.

    The kernel's thread that does it wakes the one that frees deleted subvolumes, but does nothing
    when the last transaction is committed already.
    """
    transaction = ioctl(place, _START_SYNC, bytearray(8))
    ioctl(place, _WAIT_SYNC, transaction)


def sync(place: int) -> None:
    """Write all dirty files, commit, and wake the thread that frees deleted subvolumes."""
    ioctl(place, _SYNC, bytearray(8))


def _make_writable(place: int, number: int) -> None:
    fd = open_by_id(place, number)
    try:
        set_readonly(fd, wanted=False)
    finally:
        os.close(fd)


def _named(name: str | bytes, source: int = 0) -> bytearray:
    encoded = os.fsencode(name)
    if len(encoded) > _NAME_BYTES:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), str(name))
    buffer = bytearray(_ARGS_BYTES)
    struct.pack_into("=q", buffer, 0, source)
    buffer[56 : 56 + len(encoded)] = encoded
    return buffer


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """An item of one of the file system's trees."""

    kind: int
    object: int
    offset: int
    data: bytes


def search(place: int, key: tuple[int, int, int], *, first: int = 0) -> Iterator[Item]:
    """Items with the tree, object and type of `key`, from the offset `first` on.

    Needs CAP_SYS_ADMIN. Raises OSError, ENOENT when there is no such tree.
    """
    tree, number, kind = key
    while True:
        found = _search(place, tree, (number, kind, first), (number, kind, _LAST))
        yield from found
        if not found or found[-1].offset == _LAST:
            return
        first = found[-1].offset + 1


def batches(place: int, tree: int, first: int, transid: int) -> Iterator[list[Item]]:
    """Items of the tree from the object `first` on, a few at a time, but none of blocks that are
    older than the transaction `transid`. Raises OSError, ENOENT when there is no such tree.
    """
    key = (first, 0, 0)
    while found := _search(place, tree, key, (_LAST, _BYTE, _LAST), transid):
        yield found
        last = found[-1]
        if last.offset < _LAST:
            key = (last.object, last.kind, last.offset + 1)
        elif last.kind < _BYTE:
            key = (last.object, last.kind + 1, 0)
        else:
            key = (last.object + 1, 0, 0)


def _search(place: int, tree: int, first: _Key, last: _Key, transid: int = 0) -> list[Item]:
    """Some items with keys from `first` to `last`, in their order; none = there are no more."""
    buffer = bytearray(_SEARCH_KEY.size + 8 + _SEARCH_BYTES)
    ends = (first[0], last[0], first[2], last[2], transid, _LAST, first[1], last[1])
    _SEARCH_KEY.pack_into(buffer, 0, tree, *ends, 1 << 20, 0, 0, 0, 0)
    struct.pack_into("=Q", buffer, _SEARCH_KEY.size, _SEARCH_BYTES)
    answer = ioctl(place, _TREE_SEARCH_V2, buffer)
    at, found = _SEARCH_KEY.size + 8, []
    for _ in range(_SEARCH_KEY.unpack_from(answer)[9]):
        _, number, offset, kind, length = _SEARCH_ITEM.unpack_from(answer, at)
        at += _SEARCH_ITEM.size
        data = bytes(answer[at : at + length])
        found.append(Item(kind=kind, object=number, offset=offset, data=data))
        at += length
    return found


def ioctl(fd: int, request: int, buffer: bytearray, what: str | None = None) -> bytearray:
    """ioctl(2) with a buffer that the kernel reads and may fill. Raises OSError."""
    try:
        fcntl.ioctl(fd, request, buffer)
    except OSError as exc:
        raise OSError(exc.errno, f"ioctl of btrfs: {exc.strerror}", what) from exc
    return buffer
