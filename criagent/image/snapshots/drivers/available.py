# SPDX-License-Identifier: Apache-2.0
"""Which storage driver a root directory has: the configured one, and the one it was made by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from pathlib import Path

from criagent.base.errors import UnsupportedError
from criagent.config.storage_drivers import AUTO, DEFAULT, KNOWN, canonical
from criagent.config.storage_section import Storage
from criagent.image.snapshots.driver import SnapshotDriver

Maker = Callable[[Path, Storage, Executor], SnapshotDriver]


def driver(name: str) -> Maker:
    """The class of the driver `name`, the only one that is imported: most nodes have one.

    It is called with the directory of the snapshots. Raises UnsupportedError for an unknown one.
    """
    match name:
        case "overlay":
            from criagent.image.snapshots.drivers.overlay import OverlayDriver

            return OverlayDriver
        case "native":
            from criagent.image.snapshots.drivers.native import NativeDriver

            return NativeDriver
        case "btrfs":
            from criagent.image.snapshots.drivers.btrfs import BtrfsDriver

            return BtrfsDriver
        case "devmapper":
            from criagent.image.snapshots.drivers.devmapper.driver import DevmapperDriver

            return DevmapperDriver
        case "zfs":
            from criagent.image.snapshots.drivers.zfs import ZfsDriver

            return ZfsDriver
        case "erofs":
            from criagent.image.snapshots.drivers.erofs.driver import ErofsDriver

            return ErofsDriver
        case "fuse-overlayfs":
            from criagent.image.snapshots.drivers.fuse_overlayfs import FuseOverlayfsDriver

            return FuseOverlayfsDriver
    raise UnsupportedError(f'this version does not have the storage driver "{name}"')


def chosen(configured: str, remembered: str, root: Path, found: Sequence[str] = ()) -> str:
    """The name of the driver for the root directory `root`.

    `remembered` is the driver that made its snapshots, "" when it has none; `found` are those that
    its files may be of, when the database does not know it. Raises UnsupportedError when another
    one is configured, or when this version does not have the one that made them.
    """
    wanted = canonical(configured)
    if wanted == AUTO:
        wanted = remembered or next(iter(found), DEFAULT)
    if found and wanted not in found:
        raise UnsupportedError(
            f'storage.driver is "{wanted}", but {root} has layers of the driver '
            f'"{" or ".join(found)}" that its database does not know; restore {root}/state.db, set '
            f'storage.driver = "{found[0]}", whose start removes these layers, or set another '
            "storage.root"
        )
    if remembered and wanted != remembered:
        raise UnsupportedError(
            f'storage.driver is "{wanted}", but the driver "{remembered}" made the layers in '
            f'{root}; set storage.driver = "{remembered}", set another storage.root, or run '
            f"`criagent storage migrate --to {wanted}`"
        )
    if wanted not in KNOWN:
        raise UnsupportedError(
            f'the storage driver "{wanted}" made the layers in {root}, and this version does not '
            "have it; start the version that made them, or set another storage.root"
        )
    return wanted
