# SPDX-License-Identifier: Apache-2.0
"""Snapshots as ZFS datasets below `storage.zfs.dataset`, by the `zfs` command.

    <dataset>             mounted at <root>
    <dataset>/base@layer  an empty directory fs
    <dataset>/<number>    a clone of the layer below, @layer once it is committed

They are mounted in `<root>/disks`, a tmpfs: a mount point needs space, and a full dataset has none.
A committed layer is mounted by its snapshot, which nobody can change. A container's limit is a
quota of what its dataset refers to. Clones have higher numbers than what they are made from.
"""

from __future__ import annotations

import asyncio
import errno
import os
import secrets
from collections.abc import Mapping
from concurrent.futures import Executor
from functools import partial
from pathlib import Path
from typing import Final

import structlog

from criagent.base import faults
from criagent.base.aio import finish, run_in
from criagent.base.errors import AgentError, ExhaustedError, UnsupportedError
from criagent.config.storage_section import Storage
from criagent.image.blobs import disk_full
from criagent.image.snapshots.driver import Capabilities, MappedIds
from criagent.image.snapshots.drivers.bind_mount import userns_problem
from criagent.image.snapshots.drivers.claim import Claim, write_durably
from criagent.image.snapshots.drivers.tools import tool
from criagent.image.snapshots.drivers.volumes import VolumeDriver, in_order_of_deletion, unmount
from criagent.kernel import mount

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

PACKAGE = "zfsutils-linux and zfs-dkms (Debian: section contrib; Fedora: zfs of zfsonlinux.org)"
_OWNER = "criagent:root"  # a property of the dataset: the root directory that it belongs to
_LAYER = "layer"
_DISKS = "disks"
_KSTAT = Path("/proc/spl/kstat/zfs")
_USABLE = {"ONLINE", "DEGRADED"}
_SPARE = 1 << 20
_LIMIT_S = 60.0  # a pool that lost its disks suspends, and every command waits
_AT_ONCE = 8  # the kernel takes them one by one: more would only wait, and that within the limit
_GONE = "does not exist"


class ZfsDriver(VolumeDriver):
    """Datasets, mounted below `root`."""

    name: Final = "zfs"
    capabilities: Final = Capabilities(
        settles=False, selinux_labels=False, shared_page_cache=False, size_limits=True
    )

    def __init__(self, root: Path, section: Storage, fs: Executor) -> None:
        super().__init__(root, section, fs)
        self._dataset = section.zfs.dataset
        self._pool = self._dataset.partition("/")[0]
        self._owner_file = root.with_name(f"{root.name}.zfs")
        self._lock = Claim(f"zfs-{self._dataset}", f"the dataset {self._dataset}")
        self._not_moved: set[int] = set()  # trash that is still in its place
        self._commands = asyncio.Semaphore(_AT_ONCE)

    async def prepare(self) -> None:
        """See that the dataset is this root's, mount it, and make the base unless it is there."""
        if not self._dataset:
            raise UnsupportedError(
                "the storage driver zfs needs a dataset: `zfs create -o mountpoint=legacy "
                'POOL/criagent`, then set storage.zfs.dataset = "POOL/criagent"'
            )
        if not Path("/dev/zfs").exists():
            raise UnsupportedError(
                "the kernel module zfs is not loaded; `modprobe zfs`, or install "
                f"{PACKAGE} and the kernel's headers"
            )
        self._lock.take()
        await self._claim()
        await run_in(self._fs, self._mount_root)
        await super().prepare()
        await run_in(self._fs, self._mount_points)
        if not await self._exists(f"base@{_LAYER}"):
            await self._make_base()

    async def close(self) -> None:
        """Let the dataset go; it stays mounted, since containers use it."""
        self._lock.release()

    async def _claim(self) -> None:
        got = await self._zfs("get", "-H", "-o", "value", f"{_OWNER},mountpoint", self._dataset)
        owner, mountpoint = got.split()
        if mountpoint != "legacy":
            raise UnsupportedError(
                f"the dataset {self._dataset} has the mountpoint {mountpoint}; it is mounted at "
                f"{self.root}: `zfs set mountpoint=legacy {self._dataset}`"
            )
        try:
            own = self._owner_file.read_text().strip()
        except FileNotFoundError:
            own = ""
        if own and own == owner:
            return
        if owner != "-" or len(await self._children()) > 0:
            raise UnsupportedError(
                f"the dataset {self._dataset} does not belong to {self.root.parent}: it has the "
                f"property {_OWNER}={owner}; give each root directory its own dataset, or set the "
                "storage.root that it was made for"
            )
        if not own:
            own = secrets.token_hex(16)
            self.root.parent.mkdir(parents=True, exist_ok=True)
            await run_in(self._fs, write_durably, self._owner_file, own.encode())
        faults.reach("zfs:owner-recorded")
        await self._zfs(
            "set", f"{_OWNER}={own}", "acltype=posix", "xattr=sa", "relatime=on", self._dataset
        )

    def _mount_root(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        entry = self._holding()
        if entry is None or entry.source != self._dataset:
            mount.mount(self._dataset, self.root, "zfs")

    def _holding(self) -> mount.MountEntry | None:
        return mount.holder(self.root.resolve())

    def _mount_points(self) -> None:
        """A tmpfs that stays, as its mounts do; nothing but directories is in it."""
        disks = self.root / _DISKS
        disks.mkdir(exist_ok=True, mode=0o700)
        if not disks.is_mount():
            flags = mount.MS_NOSUID | mount.MS_NODEV | mount.MS_NOEXEC
            mount.mount("criagent", disks, "tmpfs", flags, "mode=0700,size=1m")

    def _disk_of(self, entry: Path) -> Path:
        return self.root / _DISKS / entry.name

    async def _make_base(self) -> None:
        disk = self.root / "base"
        await run_in(self._fs, unmount, disk)
        await self._destroy("base")
        await self._zfs("create", self._name("base"))
        try:
            await run_in(self._fs, self._fill_base, disk)
        finally:
            await finish(run_in(self._fs, unmount, disk))
        faults.reach("zfs:base-filled")
        await self._zfs("snapshot", self._name(f"base@{_LAYER}"))

    def _fill_base(self, disk: Path) -> None:
        disk.mkdir(exist_ok=True)
        mount.mount(self._name("base"), disk, "zfs")
        (disk / "fs").mkdir()
        (disk / "fs").chmod(0o755)  # the umask does not apply: this is the image's "/"

    async def userns_problem(self, ids: MappedIds) -> str:
        """Try an idmapped mount of the dataset."""
        return await run_in(self._fs, userns_problem, self.root, ids)

    async def create_layer(self, number: int, parent: int | None) -> None:
        """A clone of `parent`, or of the base."""
        with disk_full(self.root):
            await self.make(number)
        await self._clone(number, parent, [])

    async def create_container(self, number: int, parent: int | None, limit_bytes: int) -> None:
        """A clone as well, with a quota."""
        with disk_full(self.root):
            await self.make(number)
        options = []
        if limit_bytes:
            source = self._name(self._source(parent))
            below = await self._zfs("get", "-Hp", "-o", "value", "referenced", source)
            options = ["-o", f"refquota={int(below) + limit_bytes}"]
        await self._clone(number, parent, options)

    async def _clone(self, number: int, parent: int | None, options: list[str]) -> None:
        faults.reach("zfs:recorded")
        await self._zfs("clone", *options, self._name(self._source(parent)), self._name(number))
        faults.reach("zfs:cloned")

    def _source(self, parent: int | None) -> str:
        return f"{'base' if parent is None else parent}@{_LAYER}"

    async def commit_layer(self, number: int) -> None:
        """Take the snapshot that others are cloned from; it is durable then."""
        snapshot = f"{number}@{_LAYER}"
        if not await self._exists(snapshot):
            await self._zfs("snapshot", self._name(snapshot))
        faults.reach("zfs:snapshot-taken")

    async def attach(self, number: int, disk: Path, *, label: str, readonly: bool) -> None:
        """Mount its dataset, and a layer's snapshot to look at it."""
        if label:
            raise UnsupportedError(
                "the storage driver zfs has no SELinux labels; "
                'set runtime.selinux = "off" or storage.driver = "overlay"'
            )
        source = self._name(f"{number}@{_LAYER}" if readonly else number)
        flags = mount.MS_RDONLY if readonly else 0
        try:
            await run_in(self._fs, partial(mount.mount, source, disk, "zfs", flags))
        except FileNotFoundError as exc:
            raise AgentError(
                f"the dataset {source} does not exist; run `criagent image fsck --repair`, then "
                "pull the image again"
            ) from exc
        faults.reach("zfs:mounted")

    async def settled(self, number: int) -> None:
        """A snapshot of a mounted dataset has everything that was written."""

    async def full(self) -> str:
        """Whether the pool, or what the dataset may have of it, is used up."""
        facts = await run_in(self._fs, os.statvfs, self.root)
        if facts.f_bavail * facts.f_frsize > _SPARE:
            return ""
        return (
            f"no space left in {self._dataset}; remove pods and images, enlarge the pool "
            f"{self._pool} or raise the quota"
        )

    async def unusable(self) -> str:
        """Whether the pool answers, and the dataset is mounted."""
        if reason := await self.health():
            return reason
        entry = await run_in(self._fs, self._holding)
        if entry is not None and entry.source == self._dataset:
            return ""
        return f"the dataset {self._dataset} is not mounted at {self.root}; restart criagent"

    async def health(self) -> str:
        """Whether the pool answers."""
        return await run_in(self._fs, self._health)

    def _health(self) -> str:
        try:
            state = (_KSTAT / self._pool / "state").read_text().strip()
        except FileNotFoundError:
            return (
                f"the pool {self._pool} is not imported; `zpool import {self._pool}`, then restart "
                "criagent"
            )
        if state not in _USABLE:
            return (
                f"the pool {self._pool} is {state}; see `zpool status {self._pool}`, attach its "
                f"disks and `zpool clear {self._pool}`"
            )
        return ""

    def used_shares(self) -> Mapping[str, float]:
        """What the dataset may have of the pool."""
        facts = os.statvfs(self.root)
        return {"data": 1 - facts.f_bavail / facts.f_blocks if facts.f_blocks else 1.0}

    async def facts(self) -> Mapping[str, str]:
        """The dataset and the state of its pool."""
        return {"dataset": self._dataset, "pool": await self.health() or "usable"}

    def _trash_one(self, number: int) -> None:
        """ZFS needs space to rename, none to delete: in a full pool the trash stays in place."""
        try:
            super()._trash_one(number)
        except OSError as exc:
            if exc.errno not in {errno.ENOSPC, errno.EDQUOT}:
                raise
            self._not_moved.add(number)
        faults.reach("zfs:trashed")

    def _trashed(self) -> list[Path]:
        self._not_moved = {number for number in self._not_moved if self._path(number).exists()}
        return in_order_of_deletion([*super()._trashed(), *map(self._path, self._not_moved)])

    async def destroy(self, number: int) -> None:
        """Destroy its dataset with its snapshot."""
        await self._destroy(str(number))
        faults.reach("zfs:destroyed")

    async def sweep(self, known: frozenset[int]) -> None:
        """Also destroy datasets that no snapshot names, clones before what they were made from."""
        await super().sweep(known)
        trash = await run_in(self._fs, lambda: {entry.name for entry in self._trash.iterdir()})
        numbers = [int(name) for name in await self._children() if name.isdigit()]
        for number in sorted(numbers, reverse=True):
            if number not in known and str(number) not in trash:
                log.warning("orphan_removed", path=self._name(number))
                try:
                    await self._destroy(str(number))
                except AgentError as exc:
                    log.warning("trash_not_deleted", path=self._name(number), error=str(exc))

    async def _destroy(self, name: str) -> None:
        try:
            await self._zfs("destroy", "-r", self._name(name))
        except AgentError as exc:
            if _GONE not in str(exc):
                raise

    async def _exists(self, name: str) -> bool:
        try:
            await self._zfs("list", "-H", "-o", "name", self._name(name))
        except AgentError as exc:
            if _GONE not in str(exc):
                raise
            return False
        return True

    async def _children(self) -> list[str]:
        listed = await self._zfs("list", "-H", "-o", "name", "-d", "1", "-r", self._dataset)
        prefix = f"{self._dataset}/"
        return [n.removeprefix(prefix) for n in listed.split() if n.startswith(prefix)]

    def _name(self, name: str | int) -> str:
        return f"{self._dataset}/{name}"

    async def _zfs(self, *arguments: str) -> str:
        """Run the command; its output. Raises AgentError with what it says."""
        try:
            async with self._commands:
                ended = await tool(["zfs", *arguments], PACKAGE, limit_s=_LIMIT_S, keep=16 << 20)
        except TimeoutError as exc:
            raise AgentError(
                f"zfs {' '.join(arguments)} did not end within {_LIMIT_S:.0f} s; "
                f"{self._health() or f'see `zpool status {self._pool}`'}"
            ) from exc
        if ended.status == 0:
            return ended.output
        said = ended.errors.strip()[-300:]
        if "out of space" in said or "No space left" in said or "quota exceeded" in said:
            raise ExhaustedError(
                f"no space left in {self._dataset}: {said}; remove pods and images, or enlarge the "
                f"pool {self._pool}"
            )
        cure = ""
        if not await run_in(self._fs, (_KSTAT / self._pool).exists):
            cure = f"; `zpool import {self._pool}`, then restart criagent"
        elif _GONE in said:
            cure = "; run `criagent image fsck --repair`, then pull the image again"
        raise AgentError(f"zfs {arguments[0]}: {said}{cure}")
