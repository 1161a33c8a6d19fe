# SPDX-License-Identifier: Apache-2.0
"""What a subvolume has of its own, from its tree: the kernel passes over blocks of the tree that
did not change since (`min_transid`), so it costs what changed and not what is there.

The tree has what is on disk: a write appears within the file system's commit interval, of 30 s by
default. Needs CAP_SYS_ADMIN. Synchronous, no policy.
"""

from __future__ import annotations

import struct
from collections.abc import Container, Iterator

from criagent.kernel import btrfs

_INODE_ITEM, _EXTENT_DATA = 1, 108
_GENERATION = struct.Struct("<Q")  # the first field of both
_TYPE, _INLINE, _HEADER = 20, 0, 21  # where an extent's type is, one of them, and what follows
_EXTENT = struct.Struct("<4Q")  # disk_bytenr, disk_num_bytes, offset, num_bytes
_FIRST = btrfs.TOP_INODE


def changes(
    place: int, subvolume: int, since: int, ignored: Container[int] = ()
) -> Iterator[tuple[int, int]]:
    """Bytes and inodes that were allocated in the subvolume after the transaction `since`, in parts
    that add up; the inodes `ignored` do not count. Raises OSError, ENOENT when it is gone.
    """
    for batch in btrfs.batches(place, subvolume, _FIRST, since + 1):
        size = inodes = 0
        for item in batch:
            if item.kind not in {_INODE_ITEM, _EXTENT_DATA}:
                continue
            (generation,) = _GENERATION.unpack_from(item.data)
            if generation <= since:
                continue
            if item.kind == _INODE_ITEM:
                inodes += item.object not in ignored
            else:
                size += _extent_bytes(item.data)
        yield size, inodes


def _extent_bytes(data: bytes) -> int:
    """What a file's extent takes on disk. Of one that is shared by several pieces of a file, each
    counts its own; of a compressed one, what is left of it.
    """
    if data[_TYPE] == _INLINE:
        return len(data) - _HEADER
    where, on_disk, _, length = _EXTENT.unpack_from(data, _HEADER)
    return min(length, on_disk) if where else 0  # 0 = a hole
