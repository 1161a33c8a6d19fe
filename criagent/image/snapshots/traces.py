# SPDX-License-Identifier: Apache-2.0
"""Which storage driver the files below a root directory are of, when no database says it.

A database that was lost leaves layers that only their own driver can remove: subvolumes, mounted
images, volumes of a pool. Synchronous.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

_SUBVOLUME_INODE = 256  # of the top of every subvolume of btrfs


def traces(root: Path) -> tuple[str, ...]:
    """The drivers that may have made what is in `root`/snapshots, the likeliest first.

    None for a directory without snapshots. Raises OSError.
    """
    snapshots = root / "snapshots"
    if (root / "snapshots.zfs").exists():
        return ("zfs",)
    if (snapshots / "pool").exists():
        return ("devmapper",)
    found: tuple[str, ...] = ()
    for layer in _numbered(snapshots):
        if (layer / "image.json").exists() or (layer / "image").exists():
            return ("erofs",)
        if (layer / "volume").exists():
            return ("devmapper",)
        if (layer / "count.json").exists():
            return ("fuse-overlayfs",)
        if layer.stat().st_ino == _SUBVOLUME_INODE:
            return ("btrfs",)
        found = ("overlay", "native")  # which differ in their containers alone
    return found


def _numbered(snapshots: Path) -> Iterator[Path]:
    if snapshots.is_dir():
        yield from (entry for entry in snapshots.iterdir() if entry.name.isdigit())
