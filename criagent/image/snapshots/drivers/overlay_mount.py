# SPDX-License-Identifier: Apache-2.0
"""Overlays of directories, also for user namespaces. Synchronous."""

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
    """Mount `layers` (topmost first) so that nobody can make the mount writable.

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
    """`lower_layers` as lowerdirs of an overlay; with `ids`, idmapped to them.

    Linux 6.12 takes no detached mount as a lower, so all layers below `root` are attached at once,
    by that directory, until the overlay has a clone of each. Those of an additional store are
    `<store>/snapshots/<number>/fs`, and attached likewise.
    """
    if ids is None:
        yield lower_layers
        return
    holders = {lower: root if root in lower.parents else lower.parents[1] for lower in lower_layers}
    places = {root: ids.lower_layers}
    for holder in holders.values():
        name = f"{ids.lower_layers.name}-{len(places)}"
        places.setdefault(holder, ids.lower_layers.with_name(name))
    with contextlib.ExitStack() as stack:
        for holder, place in places.items():
            stack.enter_context(_attached(holder, place, ids))
        faults.reach("container-create:idmapped-layers")
        yield [places[holders[x]] / x.relative_to(holders[x]) for x in lower_layers]


@contextlib.contextmanager
def _attached(holder: Path, place: Path, ids: MappedIds) -> Iterator[None]:
    place.mkdir(exist_ok=True, mode=0o700)
    userns = os.open(ids.userns, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with idmap.idmapped(holder, userns, readonly=True) as tree:
            idmap.attach(tree, place)
    finally:
        os.close(userns)
    try:
        yield
    finally:
        mount.detach(place)
    place.rmdir()
