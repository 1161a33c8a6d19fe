# SPDX-License-Identifier: Apache-2.0
"""Snapshots as subvolumes of btrfs: `snapshots/<number>`, whose directory `fs` has the files.

Each is a snapshot of its parent, changed in place; committed layers are read-only. A root file
system is a bind mount of `fs`, in a user namespace an idmapped one. The declared volumes of a
container lie in its subvolume too, so one deletion ends both, and one limit holds for both.

A container may make subvolumes of its own in its root, without any capability: they are deleted
with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import structlog

from criagent.base import faults
from criagent.base.aio import run_in
from criagent.base.errors import AgentError, UnsupportedError
from criagent.base.os_errors import of_the_agent
from criagent.config.storage_section import Storage
from criagent.image.blobs import disk_full
from criagent.image.snapshots.driver import (
    Capabilities,
    Counted,
    LayerPlace,
    MappedIds,
    MountPoint,
)
from criagent.image.snapshots.drivers.bind_mount import bind, userns_problem
from criagent.image.snapshots.drivers.btrfs_count import SubvolumeCount
from criagent.image.snapshots.drivers.directories import DirectoryDriver
from criagent.image.snapshots.drivers.overlay_mount import mount_readonly
from criagent.kernel import btrfs, btrfs_quota
from criagent.kernel.btrfs_quota import Mode
from criagent.kernel.trees import remove_tree
from criagent.model.image import Snapshot

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

# Pauses while waiting for the space of deleted subvolumes, 5 s in all; mounted ones keep it.
_PAUSES_S = tuple(0.005 * 2**n for n in range(10))
_IMPATIENT_S = _PAUSES_S[6]  # after which the kernel is asked to free them by a whole sync
_METADATA_BYTES = 64 << 20  # less is reported, if it is a quarter of what there is as well
_CANNOT_RENAME = frozenset({errno.ENOSPC, errno.EDQUOT})


class BtrfsDriver(DirectoryDriver):
    """Subvolumes below `root`."""

    name: Final = "btrfs"
    capabilities: Final = Capabilities(
        settles=False, selinux_labels=False, shared_page_cache=False, size_limits=True
    )

    def __init__(self, root: Path, section: Storage, fs: Executor) -> None:
        super().__init__(root, section, fs)
        self._deleted: list[int] = []  # subvolumes whose space may not have returned yet

    def _prepare(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not btrfs.is_btrfs(self.root):
            raise UnsupportedError(
                f"{self.root} is not on btrfs, which the storage driver btrfs needs; mount a btrfs "
                'file system (mkfs.btrfs of btrfs-progs) there, or set storage.driver = "overlay"'
            )
        super()._prepare()
        with _opened(self.root) as place:
            try:
                any(btrfs.nested(place, btrfs.info(place).id))
            except OSError as exc:
                raise UnsupportedError(
                    f"subvolumes below {self.root} cannot be listed: {exc}; run the agent with "
                    "CAP_SYS_ADMIN in the node's own user namespace"
                ) from exc

    async def userns_problem(self, ids: MappedIds) -> str:
        """Try an idmapped mount of the snapshots' directory."""
        return await run_in(self._fs, userns_problem, self.root, ids)

    async def create_layer(self, number: int, parent: int | None) -> None:
        """A snapshot of `parent`, or an empty subvolume."""
        await run_in(self._fs, self._create, number, parent)

    async def create_container(self, number: int, parent: int | None, limit_bytes: int) -> None:
        """A snapshot as well."""
        if limit_bytes:
            await run_in(self._fs, self._enable_limits)
        await run_in(self._fs, self._create, number, parent)
        if limit_bytes:
            await run_in(self._fs, self._limit, number, limit_bytes)

    def _enable_limits(self) -> None:
        with disk_full(self.root), _opened(self.root) as place:
            btrfs_quota.enable(place)
            faults.reach("btrfs:quotas")
            if btrfs_quota.mode(place) is Mode.FULL:
                raise UnsupportedError(
                    f"the file system of {self.root} has full quotas, which a container leaves by "
                    f"making subvolumes; run `btrfs quota disable {self.root}`, and the agent "
                    "switches simple quotas on, or set no limit"
                )

    def _limit(self, number: int, limit_bytes: int) -> None:
        with disk_full(self.root), _opened(self._path(number)) as subvolume:
            btrfs_quota.limit(subvolume, btrfs.info(subvolume).id, limit_bytes)
        faults.reach("btrfs:limited")

    def _create(self, number: int, parent: int | None) -> None:
        with disk_full(self.root), _opened(self.root) as place:
            if parent is None:
                btrfs.create(place, str(number))
                faults.reach("btrfs:subvolume")
                self._tree(number).mkdir()
                self._tree(number).chmod(0o755)  # without the umask: this is the image's "/"
            else:
                self._snapshot(place, number, parent)
        faults.reach("btrfs:created")

    def _snapshot(self, place: int, number: int, parent: int) -> None:
        try:
            with _opened(self._path(parent)) as source:
                btrfs.snapshot(source, place, str(number))
        except OSError as exc:
            if problem := self._lost(parent):
                raise AgentError(
                    f"{self._path(parent)}: {problem}; run `criagent image fsck --repair`, then "
                    "pull the image again"
                ) from exc
            raise

    @asynccontextmanager
    async def layer_place(
        self, number: int, below: Sequence[int] | None
    ) -> AsyncIterator[LayerPlace]:
        """The layer's own directory, which began as a snapshot of the topmost one below."""
        yield LayerPlace(
            root=self._tree(number),
            scratch=self._path(number),
            in_place=bool(below),
        )

    async def commit_layer(self, number: int) -> None:
        """Make it read-only: it is on stable storage with the files, by syncfs of `root`."""
        await run_in(self._fs, self._commit, number)

    def _commit(self, number: int) -> None:
        with disk_full(self.root), _opened(self._path(number)) as subvolume:
            btrfs.set_readonly(subvolume, wanted=True)
        faults.reach("btrfs:readonly")

    async def mount_container(self, number: int, below: Sequence[int], at: MountPoint) -> None:
        """Bind the container's snapshot."""
        await run_in(self._fs, bind, self._tree(number), at, self.name)

    async def mount_image(self, layers: Sequence[int], at: MountPoint) -> None:
        """An overlay of the topmost layer alone: a bind mount could be made writable."""
        trees = [self._tree(layer) for layer in layers[:1]]
        await run_in(self._fs, mount_readonly, self.root, trees, self._fillers, at)

    async def health(self) -> str:
        """Whether the kernel still lets it be written."""
        return await run_in(self._fs, self._health)

    def _health(self) -> str:
        try:
            flags = os.statvfs(self.root).f_flag
        except OSError as exc:
            return f"{self.root} cannot be read: {exc.strerror}; check the disk and dmesg"
        if flags & os.ST_RDONLY:
            return (
                f"the file system of {self.root} is read-only; look for errors of btrfs in dmesg, "
                "then unmount it and mount it again"
            )
        room = self._metadata_room()
        if room < _METADATA_BYTES:
            return (
                f"the file system of {self.root} has room for {room >> 20} MiB more of metadata; "
                f"run `btrfs balance start -dusage=50 {self.root}`, remove images, or enlarge it"
            )
        return ""

    def _metadata_room(self) -> int:
        """Bytes that metadata can still take: beyond them nothing can be created, although the
        file system may have space for data."""
        with _opened(self.root) as place:
            space, unallocated = btrfs.space(place), btrfs.unallocated(place)
        if "metadata" not in space:  # small file systems have one room for both
            return _METADATA_BYTES
        used, total = space["metadata"]
        room = total - used - space.get("reserve", (0, 0))[1] + unallocated // 2  # DUP
        return max(room, 0) if room < total // 4 else _METADATA_BYTES

    async def facts(self) -> Mapping[str, str]:
        """Its quotas, and what the file system has set aside for data and metadata."""
        return await run_in(self._fs, self._facts)

    def _facts(self) -> dict[str, str]:
        with _opened(self.root) as place:
            quotas = btrfs_quota.mode(place)
            limits = len(btrfs_quota.limits(place))
            space = btrfs.space(place)
        text = f"{quotas}, limited containers: {limits}" if limits else str(quotas)
        return {"quotas": text} | {
            name: f"{used / 1e6:.1f} of {total / 1e6:.1f} MB set aside"
            for name, (used, total) in space.items()
            if name != "reserve"
        }

    def counted(self, number: int, rootfs: Path) -> Counted:
        """What was allocated since the snapshot was made."""
        path, fixed = self._path(number), (self._tree(number), self.volumes(number))
        return Counted(tops=[fixed[0]], own=lambda: SubvolumeCount(path, fixed))

    async def problem(self, layer: Snapshot) -> str:
        """Compare the subvolume and its files with the layer's row."""
        lost = await run_in(self._fs, self._lost, layer.number)
        return lost or await super().problem(layer)

    def _lost(self, number: int) -> str:
        """How a layer is no longer a subvolume; "" = it is one."""
        try:
            inode = self._path(number).stat().st_ino
        except FileNotFoundError:
            return "the layer's subvolume is missing"
        except OSError as exc:
            if of_the_agent(exc):
                raise
            return f"the layer's subvolume cannot be read: {exc.strerror}"
        return "" if inode == btrfs.TOP_INODE else "the layer is a directory and not a subvolume"

    def _trash_one(self, number: int) -> None:
        path = self._path(number)
        try:
            if path.stat().st_ino == btrfs.TOP_INODE:
                with _opened(path) as subvolume:
                    btrfs.set_readonly(subvolume, wanted=False)  # or it cannot be renamed
                faults.reach("btrfs:writable")
            path.rename(self.root / "trash" / str(number))
        except FileNotFoundError:
            return
        except OSError as exc:
            if exc.errno not in _CANNOT_RENAME:
                raise
            self._delete(path)  # which has a reserve of the file system

    async def empty_trash(self) -> None:
        """Delete what was renamed away, and wait until its space is free."""
        await super().empty_trash()
        await self._freed()

    def _delete(self, entry: Path) -> None:
        with _opened(self.root) as place:
            if entry.stat().st_ino == btrfs.TOP_INODE:
                with _opened(entry) as subvolume:
                    number = btrfs.info(subvolume).id
                self._deleted += btrfs.destroy_all(place, number)
            else:
                remove_tree(entry)
        faults.reach("btrfs:deleted")

    async def _freed(self) -> None:
        """Wait for the kernel's thread that frees deleted subvolumes, but not for mounted ones."""
        deleted, self._deleted = self._deleted, []
        if not deleted:
            return
        await run_in(self._fs, self._at_root, btrfs.commit)
        for pause_s in _PAUSES_S:
            deleted = await run_in(self._fs, self._left, deleted)
            if not deleted:
                break
            await asyncio.sleep(pause_s)
            if pause_s == _IMPATIENT_S:
                await run_in(self._fs, self._at_root, btrfs.sync)
        await run_in(self._fs, self._at_root, btrfs.commit)  # which makes the space usable
        await run_in(self._fs, self._forget_limits)

    def _forget_limits(self) -> None:
        with _opened(self.root) as place:
            for subvolume in btrfs_quota.limits(place):
                if not btrfs.exists(place, subvolume):
                    btrfs_quota.unlimit(place, subvolume)

    def _at_root(self, call: Callable[[int], None]) -> None:
        with _opened(self.root) as place:
            call(place)

    def _left(self, deleted: Sequence[int]) -> list[int]:
        with _opened(self.root) as place:
            return [number for number in deleted if btrfs.exists(place, number)]


@contextlib.contextmanager
def _opened(directory: Path) -> Iterator[int]:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)
