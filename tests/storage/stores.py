# SPDX-License-Identifier: Apache-2.0
"""What a driver needs beside a root directory: a thin pool on files, a ZFS pool on a file."""

from __future__ import annotations

import contextlib
import hashlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

from criagent.config.storage_section import Storage as StorageSection
from criagent.config.storage_section import StorageDevmapper, StorageZfs
from criagent.image.snapshots.drivers.devmapper.pool import pool_name
from criagent.kernel import devicemapper as dm
from criagent.kernel import mount

SIZE = 64 << 20  # of the space for snapshots in bytes
ZFS_MODULES = Path("/opt/tools/bin/zfs-modules.tar")  # `# vm: programs=zfs-modules.tar`


def absent(driver: str) -> str:
    """Why the driver can't run on this kernel; "" = it can."""
    if driver == "devmapper" and not _succeeds("modprobe", "dm_thin_pool"):
        return "this kernel has no device-mapper: make vm-test has it"
    if driver == "zfs" and not _zfs_loaded():
        return "this kernel has no zfs: make vm-test has it"
    return ""


def section(driver: str, top: Path) -> StorageSection:
    """The settings of `driver` for a root directory in `top`."""
    thin = StorageDevmapper(loop_size_bytes=SIZE, base_size_bytes=4 * SIZE)
    return StorageSection(devmapper=thin, zfs=StorageZfs(dataset=f"{_pool(top)}/criagent"))


@contextlib.contextmanager
def thin_pool(top: Path) -> Iterator[None]:
    """Room for a thin pool on files; removes that of the root directory in `top`."""
    size = SIZE + (16 << 20)  # its metadata, and some
    run("mount", "-t", "tmpfs", "-o", f"size={size}", "storage", top)
    try:
        yield
    finally:
        remove_pool(top)


def remove_pool(top: Path) -> None:
    """Remove the thin pool of the root directory in `top`, and its loop devices."""
    for place in (top / "mounts", top / "snapshots"):
        mount.detach_below(place)
    pool = pool_name(top / "snapshots")
    for name in sorted(dm.names(), key=len, reverse=True):
        if name.startswith(pool):
            run("dmsetup", "remove", "--retry", name)
    for file in (top / "snapshots/loop").glob("*"):
        for device in run("losetup", "--noheadings", "-O", "NAME", "-j", file).split():
            run("losetup", "--detach", device)


@contextlib.contextmanager
def zfs_pool(top: Path) -> Iterator[None]:
    """A pool on a file in `top`, with a dataset of `SIZE` bytes."""
    run("mount", "-t", "tmpfs", "-o", f"size={3 * SIZE}", "storage", top)
    file, name = top / "vdev", _pool(top)
    with file.open("wb") as new:
        new.truncate(4 * SIZE)
    run("zpool", "create", "-o", "cachefile=none", "-O", "mountpoint=none", name, file)
    try:
        run("zfs", "create", "-o", "mountpoint=legacy", "-o", f"quota={SIZE}", f"{name}/criagent")
        yield
    finally:
        for place in (top / "mounts", top / "snapshots"):
            mount.detach_below(place)
        run("zpool", "destroy", "-f", name)


def take_snapshot_again(dataset: str, number: int) -> None:
    """Make the dataset of a layer, as it is now, what it was committed as."""
    run("zfs", "destroy", f"{dataset}/{number}@layer")
    run("zfs", "snapshot", f"{dataset}/{number}@layer")


def _pool(top: Path) -> str:
    return "test-" + hashlib.sha256(bytes(top)).hexdigest()[:8]


def run(*argv: str | Path) -> str:
    """The output of a program that must succeed."""
    return subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True).stdout


def _zfs_loaded() -> bool:
    if not Path("/dev/zfs").exists() and ZFS_MODULES.exists():
        run("tar", "-C", "/", "-xf", ZFS_MODULES, "--keep-directory-symlink", "--no-overwrite-dir")
        run("depmod")
    return _succeeds("modprobe", "zfs")


def _succeeds(*argv: str) -> bool:
    try:
        return subprocess.run(argv, check=False, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False
