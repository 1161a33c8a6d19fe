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
    directory, and so does the command line of the program behind a mount of fuse-overlayfs. A bind
    mount shows the directory itself, which is found by its device and inode, since the mount table
    has its path only within its file system.
    """
    if entry.fstype.startswith("fuse."):
        upper = _upper_of_program(entry.target)
        return "" if any(upper.startswith(f"{root}/") for root in roots) else upper
    whole = entry.fstype == "overlay" and entry.root == "/"
    if whole:
        uppers = [o for o in entry.super_options if o.startswith("upperdir=")]
        upper = uppers[0].removeprefix("upperdir=") if uppers else ""
        return "" if upper.startswith(tuple(f"{root}/" for root in roots)) else upper
    try:
        mounted = os.stat(entry.target)
    except OSError:
        return ""
    patterns = ("*/fs", "trash/*/fs", "*/disk/fs", "disks/*/fs")
    for root in roots:
        for tree in (found for p in patterns for found in root.glob(f"snapshots*/{p}")):
            with contextlib.suppress(OSError):
                if os.path.samestat(mounted, tree.stat()):
                    return ""
    return f"{entry.root} of {entry.source}"


def _upper_of_program(target: str) -> str:
    """The upper directory of the fuse-overlayfs that is mounted at `target`, "" = it has ended."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            argv = os.fsdecode((process / "cmdline").read_bytes()).split("\0")[:-1]
            if len(argv) > 2 and argv[0] == "fuse-overlayfs" and argv[-1] == target:
                options = dict(one.partition("=")[::2] for one in argv[-2].split(","))
                return options.get("upperdir", "")
    return ""
