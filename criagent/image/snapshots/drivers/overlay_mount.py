# SPDX-License-Identifier: Apache-2.0
"""Overlays of directories below one root, also for user namespaces. Synchronous."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from criagent.base import faults
from criagent.image.snapshots.driver import MappedIds, MountPoint
from criagent.kernel import idmap, mount


def mount_readonly(
    root: Path, layers: Sequence[Path], empty: Sequence[Path], at: MountPoint
) -> None:
    """Mount `layers` (topmost first, below `root`) so that nobody can make the mount writable.

    A read-only bind mount would not do: who may mount can remount it. `empty` are two empty
    directories below `root`. Raises OSError.
    """
    missing = max(0, 2 - len(layers))  # overlayfs wants two without an upper
    at.path.mkdir(parents=True, exist_ok=True)
    with seen_as(root, [*layers, *empty[:missing]], at.ids) as seen:
        mount.overlay(seen, None, None, at.path, mount.OverlayOptions(label=at.label))


@contextlib.contextmanager
def seen_as(
    root: Path, lower_layers: Sequence[Path], ids: MappedIds | None
) -> Iterator[Sequence[Path]]:
    """`lower_layers`, below `root`, as lowerdirs of an overlay; with `ids`, idmapped to them.

    Linux 6.12 takes no detached mount as a lower, so all layers are attached at once, by the
    directory that holds them, until the overlay has a clone of each.
    """
    if ids is None:
        yield lower_layers
        return
    ids.lower_layers.mkdir(exist_ok=True, mode=0o700)
    userns = os.open(ids.userns, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with idmap.idmapped(root, userns, readonly=True) as tree:
            idmap.attach(tree, ids.lower_layers)
    finally:
        os.close(userns)
    faults.reach("container-create:idmapped-layers")
    try:
        yield [ids.lower_layers / lower.relative_to(root) for lower in lower_layers]
    finally:
        mount.detach(ids.lower_layers)
    ids.lower_layers.rmdir()
