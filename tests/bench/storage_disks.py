# SPDX-License-Identifier: Apache-2.0
"""The disk of each storage driver in `make bench-storage`: a loop file with direct I/O.

btrfs has btrfs on it; devmapper a thin pool and zfs a pool, beside a file system for the rest of
the root directory; the others have ext4 with a journal.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from criagent.image.snapshots.drivers.devmapper.pool import BLOCK_SECTORS
from criagent.image.snapshots.drivers.devmapper.pool_status import parse
from criagent.kernel import devicemapper as dm
from criagent.kernel import mount
from tests.storage.pools import run

ROOT = Path("/var/lib/bench")
_FILES = Path("/var/lib/criagent/bench-disks")
_GIB = 1 << 30
_POOL = "bench-pool"
_ARC = Path("/proc/spl/kstat/zfs/arcstats")


@dataclass(frozen=True, kw_only=True)
class Disk:
    """`section` is the configuration of the driver; `pool` the bytes that its pool has in use."""

    section: str = ""
    pool: Callable[[], int] = lambda: 0
    inodes: bool = True  # whether the file system counts those of layers and containers

    def used(self) -> tuple[int, int]:
        """Bytes and inodes in use, after a sync."""
        os.sync()
        pool = self.pool()
        facts = os.statvfs(ROOT)
        inodes = facts.f_files - facts.f_ffree  # btrfs has no fixed number, and says 0
        return pool + (facts.f_blocks - facts.f_bfree) * facts.f_frsize, inodes


@contextlib.contextmanager
def disk(driver: str) -> Iterator[Disk]:
    """That of `driver`, with ROOT on it, for the block."""
    ROOT.mkdir(exist_ok=True)
    _FILES.mkdir(exist_ok=True)
    mkfs = "mkfs.btrfs -q" if driver == "btrfs" else "mkfs.ext4 -q -m 0 -E lazy_itable_init=0"
    with contextlib.ExitStack() as stack:
        stack.callback(_FILES.rmdir)
        root = stack.enter_context(_loop("root", 30 * _GIB))
        run(*mkfs.split(), root)
        run("mount", root, ROOT)
        stack.callback(mount.detach_below, ROOT)
        if driver == "devmapper":
            yield stack.enter_context(_thin())
        elif driver == "zfs":
            yield stack.enter_context(_zpool())
        else:
            yield Disk(inodes=driver != "btrfs")


@contextlib.contextmanager
def _thin() -> Iterator[Disk]:
    """Two devices, as on a node."""
    with _loop("data", 30 * _GIB) as data, _loop("metadata", _GIB // 16) as metadata:
        section = f'data_device = "{data}"\nmetadata_device = "{metadata}"\n'
        before = set(dm.names())

        def pool() -> int:
            for name in set(dm.names()) - before:
                (target,) = dm.status(name)
                if target.kind == "thin-pool":
                    return parse(target.arguments).used_data * BLOCK_SECTORS * dm.SECTOR
            return 0

        try:
            yield Disk(section=section, pool=pool, inodes=False)
        finally:
            mount.detach_below(ROOT / "snapshots")
            for name in sorted(set(dm.names()) - before, key=len, reverse=True):
                run("dmsetup", "remove", "--retry", name)


@contextlib.contextmanager
def _zpool() -> Iterator[Disk]:
    with _loop("data", 30 * _GIB) as data:
        run("zpool", "create", "-o", "cachefile=none", "-O", "mountpoint=none", _POOL, data)

        def pool() -> int:
            run("zpool", "wait", "-t", "free", _POOL)
            run("zpool", "sync", _POOL)
            return int(run("zpool", "get", "-Hp", "-o", "value", "allocated", _POOL))

        try:
            run("zfs", "create", "-o", "mountpoint=legacy", f"{_POOL}/criagent")
            yield Disk(section=f'dataset = "{_POOL}/criagent"\n', pool=pool, inodes=False)
        finally:
            mount.detach_below(ROOT / "snapshots")
            run("zpool", "destroy", "-f", _POOL)


@contextlib.contextmanager
def _loop(name: str, size: int) -> Iterator[Path]:
    """A loop device with direct I/O on a file of its own."""
    image = _FILES / name
    with image.open("wb") as file:
        file.truncate(size)
    device = run("losetup", "--find", "--show", "--direct-io=on", image).strip()
    image.unlink()
    try:
        yield Path(device)
    finally:
        run("losetup", "-d", device)


def arc_bytes() -> int:
    """The size of ZFS's own cache; 0 without ZFS."""
    try:
        lines = _ARC.read_text().splitlines()
    except FileNotFoundError:
        return 0
    return next(int(line.split()[2]) for line in lines if line.startswith("size "))
