# SPDX-License-Identifier: Apache-2.0
"""Root file systems that are a directory of the storage root, mounted with bind. Synchronous.

In a user namespace the mount is an idmapped one (man 2 mount_setattr), so that files have the same
owners on disk for every container.
"""

from __future__ import annotations

import os
from pathlib import Path

from criagent.base.errors import UnsupportedError
from criagent.image.snapshots.driver import MappedIds, MountPoint
from criagent.image.snapshots.drivers.directories import let_through
from criagent.kernel import idmap


def bind(source: Path, at: MountPoint, driver: str) -> None:
    """Mount the directory `source` for a container of the storage driver `driver`.

    Raises OSError, and UnsupportedError for an SELinux label, which a bind mount cannot have.
    """
    at.path.parent.mkdir(exist_ok=True, mode=0o700)
    if at.ids is not None:
        let_through(at.path.parent, at.ids)
    if at.label:
        raise UnsupportedError(
            f"the storage driver {driver} has no SELinux labels; "
            'set runtime.selinux = "off" or storage.driver = "overlay"'
        )
    at.path.mkdir(exist_ok=True)
    bind_mapped(source, at)


def bind_mapped(source: Path, at: MountPoint) -> None:
    """Mount `source` with the ids of `at`, whose directory exists. Raises OSError."""
    if at.ids is None:
        with idmap.cloned(source) as tree:
            idmap.attach(tree, at.path)
        return
    userns = os.open(at.ids.userns, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with idmap.idmapped(source, userns, readonly=False) as tree:
            idmap.attach(tree, at.path)
    finally:
        os.close(userns)


def userns_problem(root: Path, ids: MappedIds) -> str:
    """Why directories below `root` cannot be bound for a user namespace; "" = they can."""
    userns = os.open(ids.userns, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with idmap.idmapped(root, userns, readonly=False):
            return ""
    except OSError as exc:
        return f"the file system of {root} does not support id mapping: {exc.strerror}"
    finally:
        os.close(userns)
