# SPDX-License-Identifier: Apache-2.0
"""What the drivers devmapper and zfs have beside a root directory: a thin pool on files, a ZFS pool
on a file. Only the kernel of `make vm-test` has them.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from criagent.config.storage_section import Storage as StorageSection
from criagent.config.storage_section import StorageDevmapper, StorageZfs
from criagent.image.snapshots.drivers.devmapper.pool import pool_name
from criagent.kernel import devicemapper as dm
from criagent.kernel import mount

SIZE = 64 << 20
ZPOOL = "criagent-test"
ZFS_MODULES = Path("/opt/tools/bin/zfs-modules.tar")  # `# vm: programs=zfs-modules.tar`
ZFS = StorageSection(zfs=StorageZfs(dataset=f"{ZPOOL}/criagent"))


def thin(size: int) -> StorageSection:
    """A thin pool on files in `size` bytes, the rest of which has the metadata, and some."""
    pool = StorageDevmapper(loop_size_bytes=3 * size // 4, base_size_bytes=4 * SIZE)
    return StorageSection(devmapper=pool)


def run(*argv: str | Path) -> str:
    """The output of a program that must succeed."""
    return subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True).stdout


def no_thin_pools() -> str:
    """Why this kernel has no thin pools; "" = it has."""
    return "" if _succeeds("modprobe", "dm_thin_pool") else "no device-mapper; make vm-test has it"


def no_zfs() -> str:
    """Why this kernel has no ZFS; "" = it has."""
    if not Path("/dev/zfs").exists() and ZFS_MODULES.exists():
        run("tar", "-C", "/", "-xf", ZFS_MODULES, "--keep-directory-symlink", "--no-overwrite-dir")
        run("depmod")
    return "" if _succeeds("modprobe", "zfs") else "no zfs; make vm-test has it"


def make_zpool(top: Path, size: int) -> None:
    """A pool on a file in the tmpfs `top` of `size` bytes, a third of which its dataset may use."""
    make_dataset(top, size, vdev=4 * size // 3, quota=size // 3)


def make_dataset(top: Path, size: int, vdev: int, quota: int) -> None:
    """A pool on a file of `vdev` bytes in the tmpfs `top`, with a dataset of `quota` bytes."""
    run("mount", "-t", "tmpfs", "-o", f"size={size}", "storage", top)
    with (top / "vdev").open("wb") as file:
        file.truncate(vdev)
    run("zpool", "create", "-o", "cachefile=none", "-O", "mountpoint=none", ZPOOL, top / "vdev")
    run("zfs", "create", "-o", "mountpoint=legacy", "-o", f"quota={quota}", f"{ZPOOL}/criagent")


def remove_zpool(top: Path) -> None:
    """The end of `make_dataset`."""
    mount.detach_below(top / "snapshots")
    run("zpool", "destroy", "-f", ZPOOL)


def remove_thin_pool(top: Path) -> None:
    """Remove the thin pool of the root directory in `top`, and its loop devices."""
    mount.detach_below(top / "snapshots")
    pool = pool_name(top / "snapshots")
    for name in sorted(dm.names(), key=len, reverse=True):
        if name.startswith(pool):
            _remove_device(name)
    for file in (top / "snapshots/loop").glob("*"):
        for device in run("losetup", "--noheadings", "-O", "NAME", "-j", file).split():
            run("losetup", "--detach", device)


def _remove_device(name: str) -> None:
    """Remove it, unless it ends by itself meanwhile: its last mount has just gone."""
    done = subprocess.run(["dmsetup", "remove", "--retry", name], check=False, capture_output=True)
    assert done.returncode == 0 or dm.find(name) is None, f"{name}: {done.stderr.decode()}"


def spoil_dataset(root: Path, number: int, name: str) -> None:
    """Delete a file of a layer, and commit that."""
    layer, disk = f"{ZPOOL}/criagent/{number}", root / "spoilt"
    disk.mkdir()
    run("mount", "-t", "zfs", layer, disk)
    (disk / "fs" / name).unlink()
    run("umount", disk)
    disk.rmdir()
    run("zfs", "destroy", f"{layer}@layer")
    run("zfs", "snapshot", f"{layer}@layer")


def destroy_dataset(_: Path, number: int) -> None:
    """Take a layer away that nothing was cloned from."""
    run("zfs", "destroy", "-r", f"{ZPOOL}/criagent/{number}")


def _succeeds(*argv: str) -> bool:
    try:
        return subprocess.run(argv, check=False, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False
