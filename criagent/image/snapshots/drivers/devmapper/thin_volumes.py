# SPDX-License-Identifier: Apache-2.0
"""The thin volumes of a pool: which id each snapshot has, their devices, their removal.

The record of a snapshot, `<root>/<number>/volume`, precedes its thin volume, so every volume that a
crash leaves has a record or belongs to nobody. Synchronous but for `ids_in_pool`.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
from pathlib import Path

import msgspec

from criagent.base import faults
from criagent.base.errors import AgentError, ExhaustedError
from criagent.image.blobs import disk_full
from criagent.image.snapshots.drivers.devmapper.pool import Pool
from criagent.image.snapshots.drivers.tools import tool
from criagent.kernel import devicemapper as dm

BASE = 0  # the id of the volume that all others descend from
_IDS = 1 << 24
_BUSY_S, _LOOK_S = 2.0, 0.02
_SETTLE_S = 30.0


class Volume(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`<number>/volume`: the thin volume of a snapshot and its size."""

    id: int
    sectors: int


class ThinVolumes:
    """The volumes in `pool` of the snapshots in the directory `root`."""

    def __init__(self, root: Path, pool: Pool) -> None:
        self._root = root
        self._pool = pool
        self._ids: dict[int, int] = {}  # by number

    def load(self) -> None:
        """Read which ids are taken. Raises OSError."""
        self._ids = {}
        for directory in (self._root, self._root / "trash"):
            for entry in directory.iterdir():
                if entry.name.isdigit() and (volume := self._read(entry)) is not None:
                    self._ids[int(entry.name)] = volume.id

    def record(self, number: int, sectors: int) -> Volume:
        """Choose the id of a new snapshot and write it down. Raises ExhaustedError.

        An id has 24 bits, a number has 63: ids come round after 16 million snapshots.
        """
        taken = set(self._ids.values())
        thin_id = number % _IDS
        while thin_id in taken or thin_id == BASE:
            thin_id = (thin_id + 1) % _IDS
        volume = Volume(id=thin_id, sectors=sectors)
        place = self._root / str(number)
        with disk_full(self._root):
            new = place / "volume.new"
            new.write_bytes(msgspec.json.encode(volume))
            new.rename(place / "volume")
        self._ids[number] = thin_id
        return volume

    def find(self, number: int) -> Volume:
        """The volume of a snapshot. Raises AgentError."""
        for place in (self._root / str(number), self._root / "trash" / str(number)):
            if (volume := self._read(place)) is not None:
                return volume
        raise AgentError(
            f"snapshot {number} has no record of its thin volume in {self._root}; run "
            "`criagent image fsck --repair`"
        )

    def create(self, thin_id: int, origin: int | None) -> None:
        """A new volume, as a snapshot of the volume `origin`, None = an empty one.

        Raises AgentError, ExhaustedError.
        """
        text = f"create_thin {thin_id}" if origin is None else f"create_snap {thin_id} {origin}"
        if (status := self._pool.status()) is not None and status.full:
            raise ExhaustedError(self._pool.full_text())
        try:
            self._pool.tell(text)
        except OSError as exc:
            if exc.errno != errno.EEXIST:
                raise AgentError(
                    f"thin pool {self._pool.name}: {text}: {exc.strerror}; run "
                    "`criagent image fsck --repair`"
                ) from exc
            self._pool.tell(f"delete {thin_id}")  # of nobody: this id was free
            self._pool.tell(text)
        faults.reach("devmapper:created")

    def activate(self, number: int, volume: Volume, *, readonly: bool = False) -> dm.Device:
        """The device of a volume, made unless it is there. Raises OSError."""
        name = self._device(number)
        if (there := dm.find(name)) is not None:
            if there.active and there.open_count and there.readonly == readonly:
                return there
            dm.remove(name)
        arguments = f"{self._pool.number} {volume.id}"
        return dm.create(name, [dm.Target(volume.sectors, "thin", arguments)], readonly=readonly)

    def end_with_mount(self, number: int) -> None:
        """Let the device go once it is not mounted any more."""
        with contextlib.suppress(OSError):  # ENXIO: it is gone already
            dm.remove(self._device(number), deferred=True)

    async def gone(self, number: int, limit_s: float = _SETTLE_S) -> bool:
        """Wait until the device is gone; False when it is not within `limit_s`."""
        loop = asyncio.get_running_loop()
        end = loop.time() + limit_s
        while dm.find(self._device(number)) is not None:
            if loop.time() > end:
                return False
            await asyncio.sleep(_LOOK_S)
        return True

    async def delete(self, number: int, thin_id: int, *, discard: bool) -> None:
        """Delete a volume that is not mounted; idempotent. Raises AgentError, OSError."""
        self.end_with_mount(number)
        if not await self.gone(number, _BUSY_S):
            raise AgentError(
                f"the device {self._device(number)} is in use, by a mount in another mount "
                "namespace perhaps; it is deleted at the next removal or start"
            )
        if discard:
            self._discard(number, thin_id)
        try:
            self._pool.tell(f"delete {thin_id}")
        except OSError as exc:
            if exc.errno != errno.ENODATA:
                raise
        faults.reach("devmapper:deleted")
        self._ids.pop(number, None)

    def _discard(self, number: int, thin_id: int) -> None:
        """Give its own blocks back to what the pool is on: a delete alone leaves them there."""
        try:
            volume = self.find(number)
            device = self.activate(number, Volume(id=thin_id, sectors=volume.sectors))
        except (OSError, AgentError):
            return  # it was never made
        try:
            with contextlib.suppress(OSError):  # a full or failed pool; the delete tells
                dm.discard(device.node)
        finally:
            dm.remove(self._device(number))
        faults.reach("devmapper:discarded")

    def remove_unused_devices(self) -> None:
        """After a crash: devices that nobody has open."""
        for name in dm.names():
            prefix, _, number = name.rpartition("-")
            if prefix == self._pool.name and number.isdigit():
                self.end_with_mount(int(number))

    async def ids_in_pool(self) -> list[int]:
        """The ids of all volumes of the pool, by a snapshot of its metadata.

        Raises AgentError, UnsupportedError.
        """
        with contextlib.suppress(OSError, AgentError):  # left by a crash
            if (status := self._pool.status()) is not None and status.held_root:
                self._pool.tell("release_metadata_snap")
        self._pool.tell("reserve_metadata_snap")
        try:
            argv = ["thin_ls", "--metadata-snap", "--no-headers", "-o", "DEV"]
            ended = await tool(
                [*argv, self._pool.metadata_device()],
                "thin-provisioning-tools (Fedora: device-mapper-persistent-data)",
                keep=256 << 20,
            )
        finally:
            self._pool.tell("release_metadata_snap")
        if ended.status:
            raise AgentError(f"thin_ls: {ended.errors.strip()[-300:]}")
        return [int(word) for word in ended.output.split()]

    def known_ids(self) -> frozenset[int]:
        """Those of snapshots that have a record, and the base volume's."""
        return frozenset(self._ids.values()) | {BASE}

    def thin_id(self, number: int) -> int | None:
        """The id of a snapshot; None = it has none yet."""
        return self._ids.get(number)

    def _read(self, place: Path) -> Volume | None:
        try:
            return msgspec.json.decode((place / "volume").read_bytes(), type=Volume)
        except (FileNotFoundError, msgspec.DecodeError):  # a crash may have left it empty
            return None

    def _device(self, number: int) -> str:
        return f"{self._pool.name}-{number}"
