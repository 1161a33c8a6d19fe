# SPDX-License-Identifier: Apache-2.0
"""What the storage drivers devmapper and zfs need of the node: modules, programs, devices."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from criagent.config.sections import Config
from criagent.config.storage_section import Storage
from criagent.doctor.finding import Finding, error, fine

_PATH = "/usr/sbin:/sbin:/usr/local/sbin:/usr/bin:/bin"
_MAKERS = {"ext4": ("mkfs.ext4", "e2fsprogs"), "xfs": ("mkfs.xfs", "xfsprogs")}


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolFacts:
    """Facts that only these drivers need; programs are those that are there."""

    programs: frozenset[str] = frozenset(
        {"thin_check", "thin_ls", "mkfs.ext4", "mkfs.xfs", "losetup", "zfs"}
    )
    modules: frozenset[str] = frozenset({"dm_thin_pool", "loop", "zfs"})  # loaded, or loadable
    devices: frozenset[str] = frozenset()  # of the configured ones, those that are block devices


def read(config: Config) -> PoolFacts:
    """Inspect this node."""
    settings = config.storage.devmapper
    named = {settings.data_device, settings.metadata_device} - {""}
    known = PoolFacts()
    return PoolFacts(
        programs=frozenset(p for p in known.programs if shutil.which(p, path=_PATH)),
        modules=frozenset(filter(_has_module, known.modules)),
        devices=frozenset(device for device in named if Path(device).is_block_device()),
    )


def judge(facts: PoolFacts, config: Config) -> Iterator[Finding]:
    """Findings on `facts` for the configured drivers; none with others."""
    storage = config.storage
    used = {storage.driver, *(handler.snapshotter for handler in config.runtime.handlers.values())}
    if "devmapper" in used:
        yield _devmapper(facts, storage)
    if "zfs" in used:
        yield _zfs(facts, storage)


def _devmapper(facts: PoolFacts, storage: Storage) -> Finding:
    name, settings = "storage driver devmapper", storage.devmapper
    if "dm_thin_pool" not in facts.modules:
        return error(
            name,
            "the kernel has no module dm_thin_pool",
            "install it (Debian: linux-image-amd64, Fedora: kernel-modules-core), then "
            "`modprobe dm_thin_pool`",
        )
    maker, package = _MAKERS[settings.filesystem]
    if not {"thin_check", "thin_ls"} <= facts.programs:
        return error(
            name,
            "thin_check and thin_ls are not installed",
            "install thin-provisioning-tools (Fedora: device-mapper-persistent-data)",
        )
    if maker not in facts.programs:
        return error(name, f"{maker} is not installed", f"install {package}")
    devices = [d for d in (settings.data_device, settings.metadata_device) if d]
    if settings.loop_size_bytes:
        if "loop" not in facts.modules or "losetup" not in facts.programs:
            return error(
                name, "loop devices are not available", "`modprobe loop`, and install util-linux"
            )
        return fine(name, "a thin pool on files, which is for trials")
    if len(devices) == 1 or not (devices or settings.pool):
        return error(
            name,
            "the configuration names no thin pool",
            "set storage.devmapper.data_device and metadata_device, or pool for one that exists, "
            "or loop_size_bytes to try it on files",
        )
    if missing := sorted(set(devices) - facts.devices):
        return error(
            name,
            f"{' and '.join(missing)}: not a block device",
            "attach it, or correct storage.devmapper",
        )
    return fine(name, " and ".join(devices) or f"the thin pool {settings.pool}")


def _zfs(facts: PoolFacts, storage: Storage) -> Finding:
    name = "storage driver zfs"
    if "zfs" not in facts.modules:
        return error(
            name,
            "the kernel module zfs is not there",
            "install zfs-dkms (Debian: section contrib) and the kernel's headers, then "
            "`modprobe zfs`",
        )
    if "zfs" not in facts.programs:
        return error(name, "the program zfs is not installed", "install zfsutils-linux")
    if not storage.zfs.dataset:
        return error(
            name,
            "storage.zfs.dataset is empty",
            "`zfs create -o mountpoint=legacy POOL/criagent`, and set it to that",
        )
    return fine(name, f"the dataset {storage.zfs.dataset}")


def _has_module(name: str) -> bool:
    """Whether the module is loaded, built in, or can be loaded."""
    if Path("/sys/module", name).exists():
        return True
    release = Path("/proc/sys/kernel/osrelease").read_text().strip()
    for table in ("modules.dep", "modules.builtin"):
        try:
            text = Path("/lib/modules", release, table).read_text()
        except OSError:
            continue
        if f"/{name}.ko" in text.replace("-", "_"):
            return True
    return False
