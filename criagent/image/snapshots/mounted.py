# SPDX-License-Identifier: Apache-2.0
"""Whose files a mounted root file system has, whatever driver mounted it. Synchronous."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from criagent.kernel.mount import MountEntry


def elsewhere(entry: MountEntry, *roots: Path) -> str:
    """Where the root file system `entry` has its files, if not below `roots`.

    These are storage.root, and storage.containers_root if there is one.

    "" when they are below it, and when the mount does not say. An overlay names its upper
    directory. A bind mount shows the directory itself, which is found by its device and inode,
    since the mount table has its path only within its file system.
    """
    whole = entry.fstype == "overlay" and entry.root == "/"
    if whole:
        uppers = [o for o in entry.super_options if o.startswith("upperdir=")]
        upper = uppers[0].removeprefix("upperdir=") if uppers else ""
        return "" if upper.startswith(tuple(f"{root}/" for root in roots)) else upper
    try:
        mounted = os.stat(entry.target)
    except OSError:
        return ""
    for root in roots:
        snapshots = root / "snapshots"
        for tree in (*snapshots.glob("*/fs"), *snapshots.glob("trash/*/fs")):
            with contextlib.suppress(OSError):
                if os.path.samestat(mounted, tree.stat()):
                    return ""
    return f"{entry.root} of {entry.source}"
