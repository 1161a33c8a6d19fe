# SPDX-License-Identifier: Apache-2.0
"""Extended attributes and times that a layer gives its files. Runs in the unpack worker."""

from __future__ import annotations

import errno
import os

from criagent.image.snapshots.content_count import attributes
from criagent.image.tar.decompress import BadLayerError
from criagent.image.tar.headers import Entry
from criagent.image.tar.names import shown

FULL = {errno.ENOSPC, errno.EDQUOT}
_NOT_SET = (b"trusted.", b"user.overlay.")  # for the administrator and the overlay alone
_PATH_MAX = 4000
_REFUSED = {errno.EOPNOTSUPP, errno.EPERM}


def has_attributes(root: int, path: bytes) -> bool:
    """Whether what `path` leads to, through no link, has any that count as content."""
    return len(path) < _PATH_MAX and any(attributes(root, os.fsdecode(path)))


def drop_xattrs(directory: int) -> None:
    """Remove what a lower layer or an earlier entry gave a directory that has an entry of its own.

    The entry replaces all attributes (OCI layer.md, "Changeset over existing files"). What a
    security module of the node has given it, and does not give back, stays.
    """
    for key, _ in attributes(directory, "."):
        if os.fsencode(key).startswith(_NOT_SET):
            continue
        try:
            os.removexattr(directory, key)
        except OSError as exc:
            if exc.errno not in _REFUSED:
                raise


def set_xattrs(target: int | bytes, entry: Entry) -> None:
    """Set attributes that the file system supports and a layer may set, like containerd."""
    for key, value in entry.xattrs.items():
        if key.startswith(_NOT_SET):
            continue
        try:
            os.setxattr(target, key, value, follow_symlinks=isinstance(target, int))
        except OSError as exc:
            if exc.errno in _REFUSED:
                continue
            if exc.errno in FULL and _is_full(target):
                raise
            text = f"extended attribute {shown(key)}: {os.strerror(exc.errno or 0)}"
            raise BadLayerError(text) from None


def _is_full(target: int | bytes) -> bool:
    """ENOSPC may mean the disk or only the place that a file has for its attributes."""
    facts = os.statvfs(target if isinstance(target, int) else os.path.dirname(target))
    return facts.f_bavail < 16


def times(mtime_ns: int) -> tuple[int, int]:
    """Both times for utimensat(2): 1970 stands for what it cannot take, as in containerd."""
    seconds = mtime_ns // 10**9
    mtime_ns = mtime_ns if -(1 << 63) <= seconds < 1 << 63 else 0
    return mtime_ns, mtime_ns
