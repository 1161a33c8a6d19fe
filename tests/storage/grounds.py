# SPDX-License-Identifier: Apache-2.0
"""File systems of their own for storage drivers: tmpfs, and loop files of which nothing stays.

A driver joins the suite by its name in `KNOWN` of `criagent.config.storage_drivers`. Here it has
the file systems that it is tried on, the section of its keys, why it may be absent, and how its
layers are damaged.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from criagent.config.storage_drivers import KNOWN
from criagent.config.storage_section import Storage as StorageSection
from criagent.kernel import mount
from tests.storage import pools

SIZE = 64 << 20  # of the space for snapshots in bytes


def _tmpfs(top: Path, size: int) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "storage", top], check=True)


def _ext4(top: Path, size: int) -> None:
    """With a journal, unlike the disks of many test machines."""
    _loop(top, size, "mkfs.ext4", "-q", "-m", "0", "-J", "size=4", "-i", "4096")


def _btrfs(top: Path, size: int) -> None:
    _loop(top, size, "mkfs.btrfs", "-q", "--mixed")


def _xfs(top: Path, size: int) -> None:
    """Its smallest size is 300 MB."""
    _loop(top, max(size, 300 << 20), "mkfs.xfs", "-q")


def _ext4_prjquota(top: Path, size: int) -> None:
    options = ("-q", "-m", "0", "-O", "project,quota", "-E", "quotatype=prjquota")
    _loop(top, size, "mkfs.ext4", *options, mount_option="prjquota")


def _xfs_prjquota(top: Path, size: int) -> None:
    _loop(top, max(size, 300 << 20), "mkfs.xfs", "-q", mount_option="prjquota")


def _overlay(top: Path, size: int) -> None:
    """A file system that overlayfs cannot have its upper layers on."""
    _ext4(top, size)
    lower, upper, work = (top / name for name in ("lower", "upper", "work"))
    for directory in (lower, upper, work):
        directory.mkdir()
    mount.overlay([lower], upper, work, top)


def _loop(top: Path, size: int, *mkfs: str, mount_option: str = "rw") -> None:
    """The loop device goes with the last mount, the file at once."""
    image = top.with_name(f"{loop_mark()}-{top.name}")
    with image.open("wb") as file:
        file.truncate(size)
    try:
        subprocess.run([*mkfs, image], check=True, stdout=subprocess.DEVNULL)
        subprocess.run(["mount", "-o", f"loop,{mount_option}", image, top], check=True)
    finally:
        image.unlink()


def loop_mark() -> str:
    """What the names of this node's loop files begin with: loop devices are the whole machine's."""
    return f"ground-{os.stat('/proc/self/ns/mnt').st_ino}"


def loops() -> list[str]:
    """The loop files of this node that are still attached."""
    found = []
    for entry in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            found.append(entry.read_text().strip())
    return sorted(name for name in found if loop_mark() in name)


_MOUNTED: dict[str, Callable[[Path, int], None]] = {
    "tmpfs": _tmpfs,
    "ext4": _ext4,
    "btrfs": _btrfs,
    "xfs": _xfs,
    "ext4-prjquota": _ext4_prjquota,
    "xfs-prjquota": _xfs_prjquota,
    "overlay": _overlay,
    "zpool": pools.make_zpool,
}


def _nothing(_: Path) -> None:
    """Nothing is left besides mounts."""


def _no_reason() -> str:
    return ""


def _no_keys(_: int) -> StorageSection:
    return StorageSection()


def _spoil_btrfs(root: Path, number: int, name: str) -> None:
    """A committed layer is a read-only subvolume."""
    layer = root / str(number)
    subprocess.run(["btrfs", "property", "set", "-ts", layer, "ro", "false"], check=True)
    (layer / "fs" / name).unlink()


def _destroy_btrfs(root: Path, number: int) -> None:
    subprocess.run(["btrfs", "subvolume", "delete", root / str(number)], check=True)


def _destroy_tree(root: Path, number: int) -> None:
    mount.detach_below(root / str(number))
    shutil.rmtree(root / str(number))


def _spoil_erofs(root: Path, number: int, _: str) -> None:
    with (root / str(number) / "image").open("r+b") as image:
        image.seek(-1, os.SEEK_END)
        image.write(b"?")


@dataclass(frozen=True, kw_only=True)
class Ground:
    """What the suite has to know of a driver, beyond the protocol."""

    on: tuple[str, ...] = ("tmpfs",)  # names of `_MOUNTED`
    factor: int = 1  # the bytes of the disk for each byte that snapshots can use
    section: Callable[[int], StorageSection] = _no_keys  # those of the driver, with so many bytes
    absent: Callable[[], str] = _no_reason  # why it can't run on this kernel; "" = it can
    # Called with the root of snapshots, the number of a committed layer and a name; None = the file
    # can be deleted where a worker wrote it.
    damage: Callable[[Path, int, str], None] | None = None
    destroy: Callable[[Path, int], None] = _destroy_tree  # take away a committed layer by force
    tools: Mapping[str, str] = field(default_factory=dict)  # programs, and the packages they are in
    unreached: frozenset[str] = frozenset()  # crash points that no life of `killed.py` has
    dismantle: Callable[[Path], None] = _nothing  # of what is above the root, when all is over


_THIN = Ground(
    section=pools.thin,
    absent=pools.no_thin_pools,
    dismantle=pools.remove_thin_pool,
)
_ZFS = Ground(
    on=("zpool",),
    factor=3,
    section=lambda _: pools.ZFS,
    absent=pools.no_zfs,
    damage=pools.spoil_dataset,
    destroy=pools.destroy_dataset,
    dismantle=pools.remove_zpool,
)
_VERITY = frozenset({"erofs:verity-enabled"})
GROUNDS = {
    "overlay": Ground(on=("ext4", "tmpfs")),
    "native": Ground(on=("tmpfs", "ext4"), tools={"cp": "coreutils"}),
    "btrfs": Ground(on=("btrfs",), damage=_spoil_btrfs, destroy=_destroy_btrfs),
    "erofs": Ground(
        on=("ext4", "tmpfs"),
        damage=_spoil_erofs,
        tools={"mkfs.erofs": "erofs-utils"},
        unreached=_VERITY,
    ),
    "fuse-overlayfs": Ground(on=("ext4", "overlay"), tools={"fuse-overlayfs": "fuse-overlayfs"}),
    "devmapper": _THIN,
    "zfs": _ZFS,
}


def ground(driver: str) -> Ground:
    """That of a driver; one that has no entry is tried on tmpfs."""
    return GROUNDS.get(driver, Ground())


def columns() -> list[tuple[str, str]]:
    """Each driver of this version with each file system that it is tried on.

    STORAGE_DRIVERS selects drivers.
    """
    wanted = os.environ.get("STORAGE_DRIVERS", " ".join(KNOWN)).split()
    return [(name, kind) for name in KNOWN if name in wanted for kind in ground(name).on]


def first_columns() -> list[tuple[str, str]]:
    """Each driver once, for what does not depend on the file system and takes long."""
    return [(name, kind) for name, kind in columns() if kind == ground(name).on[0]]


def absent(driver: str) -> str:
    """Why the driver can't run on this kernel; "" = it can."""
    return ground(driver).absent()


@contextlib.contextmanager
def file_system(top: Path, driver: str, kind: str = "", size: int = SIZE) -> Iterator[Path]:
    """A file system at `top` that `driver` can use, with `size` bytes for snapshots: soon full.

    `kind` is one of those that the driver is tried on, the first by default.
    """
    mine = ground(driver)
    top.mkdir()
    try:
        _MOUNTED[kind or mine.on[0]](top, size * mine.factor)
        yield top
    finally:
        mount.detach_below(mounts_of(top))
        mine.dismantle(top)
        mount.detach_below(top)
        top.rmdir()


def mounts_of(top: Path) -> Path:
    """Where containers and volumes of the snapshots below `top` are mounted: never on its disk."""
    return top.with_name(f"{top.name}-mounts")
