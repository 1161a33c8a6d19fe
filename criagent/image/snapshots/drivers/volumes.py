# SPDX-License-Identifier: Apache-2.0
"""What drivers share that give each snapshot a file system of its own.

It is mounted at `<root>/<number>/disk`, with the files of the snapshot in `fs` and the declared
volumes of a container in `volumes`. That of a container stays mounted there until it is removed;
its root file system is a bind mount of `fs`. A layer is only mounted while it is written or looked
at. Removing the mount point afterwards ends the mounts that other mount namespaces may have of it
(those of pods with a host path, say), which would keep it busy.
"""

from __future__ import annotations

import abc
import contextlib
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import structlog

from criagent.base.aio import KeyedLocks, finish, run_in
from criagent.base.errors import AgentError, ExhaustedError
from criagent.image.blobs import disk_full
from criagent.image.snapshots.driver import Counted, LayerPlace, MountPoint
from criagent.image.snapshots.drivers.bind_mount import bind_mapped
from criagent.image.snapshots.drivers.directories import DirectoryDriver, let_through
from criagent.image.snapshots.drivers.overlay_mount import mount_readonly
from criagent.kernel import mount
from criagent.kernel.trees import remove_tree
from criagent.kernel.write_back import WriteBack
from criagent.model.image import Snapshot

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

_MADE = "made"  # a file from before the snapshot: what changed later is the container's


class VolumeDriver(DirectoryDriver, abc.ABC):
    """A driver whose snapshots are file systems."""

    _locks: KeyedLocks

    @abc.abstractmethod
    async def attach(self, number: int, disk: Path, *, label: str, readonly: bool) -> None:
        """Mount the snapshot at the directory `disk`. Raises OSError, AgentError."""

    @abc.abstractmethod
    async def settled(self, number: int) -> None:
        """Wait until an unmounted snapshot is used by nobody. Raises AgentError."""

    @abc.abstractmethod
    async def destroy(self, number: int) -> None:
        """Delete a snapshot that is not mounted; idempotent. Raises OSError, AgentError."""

    @abc.abstractmethod
    async def full(self) -> str:
        """Why nothing can be written any more; "" = it can."""

    @abc.abstractmethod
    async def unusable(self) -> str:
        """Why no snapshot can be mounted, whatever is in it, with the cure; "" = they can."""

    async def prepare(self) -> None:
        """Make the fixed directories, on a mount that unpack workers see what is mounted below."""
        self._locks = KeyedLocks("volume")
        await super().prepare()
        await run_in(self._fs, mount.make_shared, self.root)

    @asynccontextmanager
    async def layer_place(
        self, number: int, below: Sequence[int] | None
    ) -> AsyncIterator[LayerPlace]:
        """The layer's file system, mounted for the block."""
        disk = self._disk(number)
        await self._attach(number)
        try:
            # Its descriptor is closed before the unmounting, for which it would be a user.
            with contextlib.closing(WriteBack(disk)) as written:
                await run_in(self._fs, written.open)
                yield LayerPlace(root=self._tree(number), scratch=disk, in_place=bool(below))
                await run_in(self._fs, written.sync)
            await run_in(self._fs, unmount, disk)
        except (AgentError, OSError) as exc:
            await finish(run_in(self._fs, unmount, disk))
            if reason := await self.full():
                raise ExhaustedError(reason) from exc
            raise
        except BaseException:
            await finish(run_in(self._fs, unmount, disk))
            raise
        await self.settled(number)

    async def mount_container(self, number: int, below: Sequence[int], at: MountPoint) -> None:
        """Bind the files of the container's file system."""
        async with self._locks.hold(str(number)):
            await self._attach(number, label=at.label)
            await run_in(self._fs, _bind_rootfs, self._tree(number), at)

    async def mount_image(self, layers: Sequence[int], at: MountPoint) -> None:
        """Bind the files of the topmost layer, whose file system is mounted read-only."""
        if not layers:
            await run_in(self._fs, mount_readonly, self.root, [], self._fillers, at)
            return
        async with self._attached(layers[0], label=at.label):
            await run_in(self._fs, _bind_volume, self._tree(layers[0]), at)

    def volumes(self, number: int) -> Path:
        """`<number>/disk/volumes`: its limit is theirs."""
        return self._disk(number) / "volumes"

    def counted(self, number: int, rootfs: Path) -> Counted:
        """What changed after the snapshot was made.

        The number of blocks that it does not share would not do: it counts whole blocks, and
        neither names a container's inodes nor what it deleted.
        """
        try:
            made = (self._path(number) / _MADE).stat().st_mtime_ns
        except FileNotFoundError:
            return Counted(tops=[])
        tops = [self._tree(number), self.volumes(number)]
        return Counted(tops=[top for top in tops if top.exists()], changed_after_ns=made)

    @asynccontextmanager
    async def layer_tree(self, number: int) -> AsyncIterator[Path | None]:
        """Its directory, mounted read-only."""
        async with self._attached(number):
            yield self._tree(number)

    async def problem(self, layer: Snapshot) -> str:
        """Mount the layer read-only and compare its files with its row.

        Raises ExhaustedError when the store has no room for that, and AgentError when it is not
        there at all: neither says anything of the layer, which a repair would delete.
        """
        try:
            with disk_full(self._path(layer.number)):
                found = await self._problem(layer)
        except ExhaustedError:
            raise
        except (OSError, AgentError) as exc:
            found = f"the layer cannot be mounted: {exc}"
        if found and (reason := await self.unusable()):
            raise AgentError(reason)
        return found

    async def _problem(self, layer: Snapshot) -> str:
        if not self._path(layer.number).exists():
            return "the layer's directory is missing"
        async with self._attached(layer.number):
            return await super().problem(layer)

    @asynccontextmanager
    async def _attached(self, number: int, label: str = "") -> AsyncIterator[None]:
        """A layer, mounted read-only at its `disk` for the block."""
        async with self._locks.hold(str(number)):
            await self._attach(number, label=label, readonly=True)
            try:
                yield
            finally:
                await finish(run_in(self._fs, unmount, self._disk(number)))

    async def _attach(self, number: int, *, label: str = "", readonly: bool = False) -> None:
        disk = self._disk(number)
        if await run_in(self._fs, _mount_point, disk):
            await self.attach(number, disk, label=label, readonly=readonly)

    @property
    def _trash(self) -> Path:
        return self.root / "trash"

    async def make(self, number: int) -> None:
        """The directory of a new snapshot. Raises OSError."""
        await run_in(self._fs, self._make, number)

    def _make(self, number: int) -> None:
        self._path(number).mkdir(mode=0o700)
        (self._path(number) / _MADE).touch()

    def _trash_one(self, number: int) -> None:
        unmount(self._disk(number))
        super()._trash_one(number)

    async def empty_trash(self) -> None:
        """Delete the snapshots, those that were made from others first, then their directories."""
        for entry in await run_in(self._fs, self._trashed):
            try:
                await run_in(self._fs, unmount, self._disk_of(entry))
                await self.destroy(int(entry.name))
                await run_in(self._fs, remove_tree, entry)
            except (OSError, AgentError) as exc:
                log.warning("trash_not_deleted", path=str(entry), error=str(exc))

    def _trashed(self) -> list[Path]:
        """Directories of snapshots to be deleted, in that order."""
        return in_order_of_deletion(self._trash.iterdir())

    async def sweep(self, known: frozenset[int]) -> None:
        """Trash what belongs to no number in `known`, and empty the trash."""
        await run_in(self._fs, self._trash_unknown, known)
        await self.empty_trash()

    def _trash_unknown(self, known: frozenset[int]) -> None:
        for entry in self.root.iterdir():
            if entry.name.isdigit() and int(entry.name) not in known:
                log.warning("orphan_removed", path=str(entry))
                self._trash_one(int(entry.name))

    def _disk_of(self, entry: Path) -> Path:
        """The mount point of the snapshot whose directory is `entry`, here or in the trash."""
        return entry / "disk"

    def _disk(self, number: int) -> Path:
        return self._disk_of(self._path(number))

    def _tree(self, number: int) -> Path:
        return self._disk(number) / "fs"


def in_order_of_deletion(entries: Iterable[Path]) -> list[Path]:
    """Those with higher numbers first, since they may be made from others."""
    return sorted(entries, key=lambda entry: int(entry.name), reverse=True)


def _bind_rootfs(source: Path, at: MountPoint) -> None:
    at.path.parent.mkdir(exist_ok=True, mode=0o700)
    if at.ids is not None:
        let_through(at.path.parent, at.ids)
    at.path.mkdir(exist_ok=True)
    bind_mapped(source, at)


def _bind_volume(source: Path, at: MountPoint) -> None:
    at.path.mkdir(parents=True, exist_ok=True)
    bind_mapped(source, at)


def unmount(disk: Path) -> None:
    """End the mounts at `disk` in all mount namespaces, when their users have; idempotent."""
    mount.detach(disk)
    with contextlib.suppress(FileNotFoundError):
        disk.rmdir()


def _mount_point(disk: Path) -> bool:
    """Make the directory; False when something is mounted there."""
    disk.mkdir(exist_ok=True)
    return not disk.is_mount()
