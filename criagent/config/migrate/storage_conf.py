# SPDX-License-Identifier: Apache-2.0
"""storage.conf of CRI-O and Podman (man 5 containers-storage.conf)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from criagent.config.migrate.migration import Migration, Where
from criagent.config.migrate.rules import Rule, apply, driver, left, size_bytes, to, unneeded

_OWN = unneeded("the agent has directories of its own: storage.root and storage.run_dir")
_SIZE = to("storage.container_limit_bytes", size_bytes)


def read(migration: Migration, document: Mapping[str, Any], file: Path) -> None:
    """Read one file."""
    earlier = Migration()
    apply(earlier, _PROGRAM, document, Where(file, ""))
    table = {**_TABLE, **_MOUNTED_BY_FUSE} if earlier.settings else _TABLE
    apply(migration, table, document, Where(file, ""))


def _mount_program(migration: Migration, where: Where, value: Any) -> None:
    if str(value).endswith("fuse-overlayfs"):
        migration.take(where, "storage.driver", "fuse-overlayfs")
    elif value:
        migration.left(where, f"{value}: overlay is mounted by the kernel, or by fuse-overlayfs")


_PROGRAM: dict[str, Rule] = {
    "storage/options/mount_program": _mount_program,
    "storage/options/overlay/mount_program": _mount_program,
    "**": unneeded("read later"),
}
# fuse-overlayfs stands for the driver overlay, so that it comes first whatever the file's order is.
_MOUNTED_BY_FUSE: dict[str, Rule] = {"storage/driver": unneeded("fuse-overlayfs mounts it")}
_TABLE: dict[str, Rule] = {
    "storage/options/mount_program": _mount_program,
    "storage/options/overlay/mount_program": _mount_program,
    "storage/driver": to("storage.driver", driver),
    "storage/graphroot": _OWN,
    "storage/runroot": _OWN,
    "storage/imagestore": _OWN,
    "storage/rootless_storage_path": unneeded("the agent runs as root"),
    "storage/transient_store": left("containers survive a reboot of the node as records only"),
    "storage/driver_priority": left("set storage.driver"),
    "storage/options/size": _SIZE,
    "storage/options/overlay/size": _SIZE,
    "storage/options/btrfs/size": _SIZE,
    "storage/options/vfs/**": left("see docs/storage.md, driver native"),
    "storage/options/overlay/mountopt": left(
        "the agent chooses overlay's options", "nodev", "nodev,metacopy=on"
    ),
    "storage/options/zfs/fsname": to("storage.zfs.dataset"),
    "storage/options/thinpool/basesize": to("storage.devmapper.base_size_bytes", size_bytes),
    "storage/options/thinpool/fs": to("storage.devmapper.filesystem"),
    "storage/options/additionalimagestores": left(
        "stores of containers/storage have another format; see storage.additional_stores"
    ),
    "storage/options/pull_options/**": left("layers are pulled whole", "false"),
    "storage/options/**": left("see docs/storage.md for the keys of each driver", "true"),
}
