# SPDX-License-Identifier: Apache-2.0
"""Limits of subvolumes by btrfs' simple quotas (Linux 6.7), without btrfs-progs.

A subvolume that is to be limited gets a quota group of its own, `LEVEL/<id>`. With simple quotas a
subvolume that is made within it joins that group by itself, so nobody can leave the limit by making
subvolumes, which needs no capability. With full quotas it does not. Synchronous, no policy.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import struct
from typing import Final

from criagent.kernel import btrfs

LEVEL: Final = 25458  # unusual, so that it does not meet groups of others; people use 1, 2, 3

_QUOTA_TREE = 8
_STATUS_ITEM, _INFO_ITEM = 240, 242
_ON, _SIMPLE = 1, 8
_ENABLE_SIMPLE = 4
_MAX_REFERENCED = 1
_QUOTA_CTL = btrfs.request(3, 40, 16)
_ASSIGN = btrfs.request(1, 41, 24)
_CREATE = btrfs.request(1, 42, 16)
_LIMIT = btrfs.request(2, 43, 48)


class Mode(enum.StrEnum):
    """What counts the space of subvolumes."""

    OFF = "off"
    FULL = "full"
    SIMPLE = "simple"


def mode(place: int) -> Mode:
    """The quotas of the file system of an open directory. Raises OSError."""
    try:
        items = list(btrfs.search(place, (_QUOTA_TREE, 0, _STATUS_ITEM)))
    except FileNotFoundError:
        return Mode.OFF
    flags = struct.unpack_from("<Q", items[0].data, 16)[0] if items else 0
    if not flags & _ON:
        return Mode.OFF
    return Mode.SIMPLE if flags & _SIMPLE else Mode.FULL


def enable(place: int) -> None:
    """Switch simple quotas on, unless some quotas are. Raises OSError, EINVAL before Linux 6.7."""
    btrfs.ioctl(place, _QUOTA_CTL, bytearray(struct.pack("=QQ", _ENABLE_SIMPLE, 0)))


def limit(place: int, subvolume: int, size: int) -> None:
    """Let the subvolume with that id, and what will be made in it, take `size` bytes on disk.

    Idempotent. Raises OSError.
    """
    group = _group(subvolume)
    for request, *values in (
        (_CREATE, 1, group),
        (_ASSIGN, 1, subvolume, group),
        (_LIMIT, group, _MAX_REFERENCED, size, 0, 0, 0),
    ):
        with contextlib.suppress(FileExistsError):
            btrfs.ioctl(place, request, bytearray(struct.pack(f"={len(values)}Q", *values)))


def limits(place: int) -> dict[int, int]:
    """Subvolumes, which may be deleted by now, that `limit` was called for: id, bytes used."""
    try:
        items = list(btrfs.search(place, (_QUOTA_TREE, 0, _INFO_ITEM), first=_group(0)))
    except FileNotFoundError:
        return {}
    return {
        item.offset & ~_group(0): struct.unpack_from("<Q", item.data, 8)[0]
        for item in items
        if item.offset >> 48 == LEVEL
    }


def unlimit(place: int, subvolume: int) -> bool:
    """Drop the group of a deleted subvolume; False = its space is not free yet. Idempotent."""
    try:
        btrfs.ioctl(place, _CREATE, bytearray(struct.pack("=QQ", 0, _group(subvolume))))
    except FileNotFoundError:
        return True
    except OSError as exc:
        if exc.errno == errno.EBUSY:
            return False
        raise
    return True


def _group(subvolume: int) -> int:
    return LEVEL << 48 | subvolume
