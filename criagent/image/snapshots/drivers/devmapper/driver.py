# SPDX-License-Identifier: Apache-2.0
"""Snapshots as thin volumes with a file system each: only blocks that change are copied.

A layer is a snapshot of the layer below it, the lowest one of an empty base volume. A container's
volume is a snapshot of its image's topmost layer; a limit on its size is enforced by the size of
its file system.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Mapping
from concurrent.futures import Executor
from functools import partial
from pathlib import Path
from typing import Final

import msgspec
import structlog

from criagent.base import faults
from criagent.base.aio import finish, run_in
from criagent.base.errors import AgentError, ExhaustedError
from criagent.config.storage_section import Storage
from criagent.image.blobs import disk_full
from criagent.image.snapshots.driver import Capabilities, MappedIds
from criagent.image.snapshots.drivers.bind_mount import userns_problem
from criagent.image.snapshots.drivers.devmapper import file_systems, pool_status
from criagent.image.snapshots.drivers.devmapper.pool import Pool
from criagent.image.snapshots.drivers.devmapper.thin_volumes import BASE, ThinVolumes, Volume
from criagent.image.snapshots.drivers.volumes import VolumeDriver, unmount
from criagent.kernel import devicemapper as dm

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


_GOING = {errno.ENOENT, errno.ENXIO, errno.ENODEV, errno.EBUSY}
_TRIES, _PAUSE_S = 20, 0.05


class DevmapperDriver(VolumeDriver):
    """Thin volumes, mounted below `root`."""

    name: Final = "devmapper"
    capabilities: Final = Capabilities(
        settles=False, selinux_labels=True, shared_page_cache=False, size_limits=True
    )

    def __init__(self, root: Path, section: Storage, fs: Executor) -> None:
        super().__init__(root, section, fs)
        self._settings = section.devmapper
        self.pool = Pool(root, section.devmapper)
        self.thin = ThinVolumes(root, self.pool)
        discard = section.devmapper.discard
        self._discard = discard == "always" or (discard == "auto" and self.pool.on_files)

    async def prepare(self) -> None:
        """Activate the pool, and make the base volume unless it is complete."""
        await super().prepare()
        await self.pool.open()
        await run_in(self._fs, self.thin.load)
        await run_in(self._fs, self.thin.remove_unused_devices)
        if not self.pool.record.base_sectors:
            await self._make_base()

    async def close(self) -> None:
        """Let the pool go; it stays active."""
        self.pool.close()

    async def _make_base(self) -> None:
        """An empty file system. What a crash left of it is deleted first."""
        filesystem, size = self._settings.filesystem, self._settings.base_size_bytes
        disk = self.root / "base"
        await run_in(self._fs, unmount, disk)
        self.thin.end_with_mount(BASE)
        await self.settled(BASE)
        volume = Volume(id=BASE, sectors=size // dm.SECTOR)
        await run_in(self._fs, self.thin.create, BASE, None)
        device = await run_in(self._fs, self.thin.activate, BASE, volume)
        await file_systems.make(filesystem, device.node)
        faults.reach("devmapper:base-formatted")
        kept = msgspec.structs.replace(
            self.pool.record, base_sectors=volume.sectors, filesystem=filesystem
        )
        try:
            await run_in(self._fs, self._fill_base, device.node, disk, filesystem)
        finally:
            await finish(run_in(self._fs, unmount, disk))
            self.thin.end_with_mount(BASE)
        await self.settled(BASE)
        await run_in(self._fs, self.pool.keep, kept)

    def _fill_base(self, node: Path, disk: Path, filesystem: str) -> None:
        disk.mkdir(exist_ok=True)
        file_systems.attach(filesystem, node, disk, label="", readonly=False)
        (disk / "fs").mkdir()
        (disk / "fs").chmod(0o755)  # the umask does not apply: this is the image's "/"

    async def userns_problem(self, ids: MappedIds) -> str:
        """Try it with the base volume."""
        disk = self.root / "probe"
        base = Volume(id=BASE, sectors=self.pool.record.base_sectors)
        async with self._locks.hold("base"):
            try:
                disk.mkdir(exist_ok=True)
                await run_in(self._fs, partial(self._mount, BASE, base, disk, readonly=True))
                return await run_in(self._fs, userns_problem, disk, ids)
            except (OSError, AgentError) as exc:
                return f"the base volume cannot be mounted: {exc}"
            finally:
                await finish(run_in(self._fs, unmount, disk))
                await self.thin.gone(BASE)

    async def create_layer(self, number: int, parent: int | None) -> None:
        """A snapshot of `parent`, or of the base volume."""
        with disk_full(self.root):
            await self.make(number)
        await run_in(self._fs, self._snapshot, number, parent, 0)

    async def create_container(self, number: int, parent: int | None, limit_bytes: int) -> None:
        """A snapshot as well, larger when the limit needs it."""
        with disk_full(self.root):
            await self.make(number)
        await run_in(self._fs, self._snapshot, number, parent, limit_bytes)
        if not limit_bytes:
            return
        disk = self._disk(number)
        await self._attach(number)
        try:
            await file_systems.fit(self.pool.record.filesystem, disk, limit_bytes)
        finally:
            await finish(run_in(self._fs, unmount, disk))
        await self.settled(number)

    def _snapshot(self, number: int, parent: int | None, limit_bytes: int) -> None:
        origin = (
            Volume(id=BASE, sectors=self.pool.record.base_sectors)
            if parent is None
            else self.thin.find(parent)
        )
        sectors = origin.sectors
        if limit_bytes:  # the whole volume below the layer, and as much again as it may grow
            sectors = max(sectors, file_systems.sectors_for(limit_bytes, origin.sectors))
        volume = self.thin.record(number, sectors)
        faults.reach("devmapper:recorded")
        self.thin.create(volume.id, origin.id)

    async def attach(self, number: int, disk: Path, *, label: str, readonly: bool) -> None:
        """Mount its volume, whose device ends with the mount."""
        volume = await run_in(self._fs, self.thin.find, number)
        await run_in(
            self._fs, partial(self._mount, number, volume, disk, label=label, readonly=readonly)
        )

    def _mount(
        self, number: int, volume: Volume, disk: Path, *, label: str = "", readonly: bool = False
    ) -> None:
        """A device whose last mount ends just now is gone when it is opened: then once more."""
        filesystem = self.pool.record.filesystem
        for left in reversed(range(_TRIES)):
            try:
                device = self.thin.activate(number, volume, readonly=readonly)
                faults.reach("devmapper:activated")
                file_systems.attach(filesystem, device.node, disk, label=label, readonly=readonly)
                faults.reach("devmapper:mounted")
                return
            except OSError as exc:
                if exc.errno not in _GOING or not left:
                    raise
                time.sleep(_PAUSE_S)
            finally:
                self.thin.end_with_mount(number)

    async def settled(self, number: int) -> None:
        """Wait for the end of its device: then the file system is whole."""
        if not await self.thin.gone(number):
            raise AgentError(
                f"the device of snapshot {number} is still in use, by a mount in another mount "
                "namespace perhaps; try again once that has ended"
            )
        if reason := await self.full():
            raise ExhaustedError(reason)

    async def full(self) -> str:
        """Whether the pool has no more blocks."""
        status = await run_in(self._fs, self.pool.status)
        return self.pool.full_text() if status is not None and status.full else ""

    async def unusable(self) -> str:
        """Whether the pool is inactive or has failed."""
        status = await run_in(self._fs, self.pool.status)
        if status is None:
            return self._inactive()
        if status.mode == pool_status.FAILED:
            return pool_status.problem(self.pool.name, status, self._settings.watermark_percent)
        return ""

    def _inactive(self) -> str:
        name = self.pool.name
        return f"the thin pool {name} is not active; restart criagent, which activates it"

    async def health(self) -> str:
        """Whether the pool is active and below its watermarks."""
        status = await run_in(self._fs, self.pool.status)
        if status is None:
            return self._inactive()
        if self.pool.on_files and (reason := self.pool.loops.missing()):
            return reason
        return pool_status.problem(self.pool.name, status, self._settings.watermark_percent)

    def used_shares(self) -> Mapping[str, float]:
        """Data and metadata of the pool."""
        status = self.pool.status()
        if status is None:
            return {}
        return {"data": status.data_percent / 100, "metadata": status.metadata_percent / 100}

    async def facts(self) -> Mapping[str, str]:
        """The pool and how full it is."""
        facts = {"pool": self.pool.name, "file system": self.pool.record.filesystem}
        status = await run_in(self._fs, self.pool.status)
        if status is not None:
            facts["pool mode"] = status.mode
            facts["pool data"] = f"{status.data_percent:.1f} %"
            facts["pool metadata"] = f"{status.metadata_percent:.1f} %"
        return facts

    async def destroy(self, number: int) -> None:
        """Delete its volume from the pool."""
        thin_id = self.thin.thin_id(number)
        if thin_id is not None:
            await self.thin.delete(number, thin_id, discard=self._discard)

    async def sweep(self, known: frozenset[int]) -> None:
        """Also delete volumes that no snapshot names."""
        await super().sweep(known)
        try:
            ids = await self.thin.ids_in_pool()
        except (OSError, AgentError) as exc:
            log.warning("storage_pool_not_listed", pool=self.pool.name, error=str(exc))
            return
        for thin_id in sorted(set(ids) - self.thin.known_ids()):
            log.warning("orphan_removed", path=f"{self.pool.name}/{thin_id}")
            await run_in(self._fs, self.pool.tell, f"delete {thin_id}")
