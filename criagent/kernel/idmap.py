# SPDX-License-Identifier: Apache-2.0
"""Clones of mounts, also with other owners (man 2 mount_setattr). No policy."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import c_int, c_size_t, c_uint
from pathlib import Path

from criagent.kernel.syscalls import syscall

_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442
_OPEN_TREE_CLONE = 1
_MOVE_MOUNT_F_EMPTY_PATH = 0x4
_MOUNT_ATTR_RDONLY = 0x1
_MOUNT_ATTR_IDMAP = 0x00100000
_AT_FDCWD = -100
_AT_EMPTY_PATH = 0x1000
_AT_RECURSIVE = 0x8000
_MS_SLAVE = 0x80000


class _MountAttr(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


@contextmanager
def idmapped(source: Path, userns: int, *, readonly: bool) -> Iterator[int]:
    """A detached clone of the mount at `source`, its ids mapped as in `userns` (a descriptor).

    Mounts below `source` are included unchanged, and all are slaves: they receive later mounts, and
    propagate none back. The descriptor is closed after the block, and the clone with it unless it
    was attached. Raises OSError EINVAL if the file system does not support id mapping.
    """
    with cloned(source) as tree:
        attr = _MountAttr(
            attr_set=_MOUNT_ATTR_IDMAP | (_MOUNT_ATTR_RDONLY if readonly else 0), userns_fd=userns
        )
        _setattr(tree, 0, attr, source)
        yield tree


@contextmanager
def cloned(source: Path) -> Iterator[int]:
    """A detached clone of the mount at `source` with the owners it has; else like `idmapped`."""
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | _AT_RECURSIVE
    tree = syscall(
        _OPEN_TREE, "open_tree", c_int(_AT_FDCWD), os.fsencode(source), c_uint(flags), source=source
    )
    try:
        # A peer of `source` would take the mounts below `source` away with those below the clone.
        _setattr(tree, _AT_RECURSIVE, _MountAttr(propagation=_MS_SLAVE), source)
        yield tree
    finally:
        os.close(tree)


def attach(tree: int, target: Path) -> None:
    """Mount a detached tree at `target`."""
    syscall(
        _MOVE_MOUNT,
        "move_mount",
        c_int(tree),
        b"",
        c_int(_AT_FDCWD),
        os.fsencode(target),
        c_uint(_MOVE_MOUNT_F_EMPTY_PATH),
        source=target,
    )


def _setattr(tree: int, flags: int, attr: _MountAttr, source: Path) -> None:
    syscall(
        _MOUNT_SETATTR,
        "mount_setattr",
        c_int(tree),
        b"",
        c_uint(_AT_EMPTY_PATH | flags),
        ctypes.byref(attr),
        c_size_t(ctypes.sizeof(attr)),
        source=source,
    )
