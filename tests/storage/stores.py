# SPDX-License-Identifier: Apache-2.0
"""What a driver needs beside a root directory: a thin pool on files, a ZFS pool on a file."""

from __future__ import annotations

import contextlib
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


@contextlib.contextmanager
def store(driver: str, top: Path) -> Iterator[StorageSection]:
    """The settings of `driver` for a root directory in `top`, with what they name.

    `top` is a file system of its own. Nothing is left of it but files there.
    """
    if driver == "devmapper":
        settings = StorageDevmapper(loop_size_bytes=SIZE, base_size_bytes=4 * SIZE)
        try:
            yield StorageSection(devmapper=settings)
        finally:
            remove_pool(top)
    elif driver == "zfs":
        with zfs_pool(top) as dataset:
            yield StorageSection(zfs=StorageZfs(dataset=dataset))
    else:
        yield StorageSection()


def remove_pool(top: Path) -> None:
    """Remove the thin pool of the root directory `top`, and its loop devices."""
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
def zfs_pool(top: Path) -> Iterator[str]:
    """A pool on a file in `top`; yields a dataset of `SIZE` bytes."""
    name = f"test-{abs(hash(top)) % 1_000_000}"
    file = top / "vdev"
    with file.open("wb") as new:
        new.truncate(4 * SIZE)
    run("zpool", "create", "-o", "cachefile=none", "-O", "mountpoint=none", name, file)
    try:
        run("zfs", "create", "-o", "mountpoint=legacy", "-o", f"quota={SIZE}", f"{name}/criagent")
        yield f"{name}/criagent"
    finally:
        for place in (top / "mounts", top / "snapshots"):
            mount.detach_below(place)
        run("zpool", "destroy", "-f", name)


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
