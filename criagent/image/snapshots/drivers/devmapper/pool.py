# SPDX-License-Identifier: Apache-2.0
"""The thin pool of the driver devmapper: its devices, its activation, and whose it is.

A pool belongs to one root directory. `<root>/pool` has a random number, which is the transaction id
of the pool: the kernel stores it with the pool's metadata and leaves its meaning to the owner.
Synchronous but for the programs that it runs.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
from pathlib import Path

import msgspec
import structlog

from criagent.base import faults
from criagent.base.errors import AgentError, ExhaustedError, UnsupportedError
from criagent.config.storage_section import StorageDevmapper
from criagent.image.snapshots.drivers.claim import Claim, write_durably
from criagent.image.snapshots.drivers.devmapper import pool_status
from criagent.image.snapshots.drivers.devmapper.loop_files import LoopFiles
from criagent.image.snapshots.drivers.devmapper.pool_status import PoolStatus
from criagent.image.snapshots.drivers.tools import tool
from criagent.kernel import devicemapper as dm

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

BLOCK_SECTORS = 128  # 64 KiB: what a first write to a shared block copies
_METADATA_BLOCK, _METADATA_BLOCKS = 4096, 255 * ((1 << 14) - 64)  # the kernel uses no more
_TOOLS = "thin-provisioning-tools (Fedora: device-mapper-persistent-data)"


class PoolRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`<root>/pool`: the pool's transaction id, and the base volume once it is complete."""

    id: int
    base_sectors: int = 0
    filesystem: str = ""


def pool_name(root: Path) -> str:
    """The name of the pool of the root directory `root`, unless one is configured."""
    return f"criagent-{hashlib.sha256(bytes(root)).hexdigest()[:8]}"


class Pool:
    """The pool of the root directory `root`."""

    def __init__(self, root: Path, section: StorageDevmapper) -> None:
        self._section = section
        self._record_file = root / "pool"
        self._root = root
        self.loops = LoopFiles(root / "loop", section.loop_size_bytes)
        self.on_files = bool(section.loop_size_bytes)
        self.name = section.pool or pool_name(root)
        self.record = PoolRecord(id=0)
        self.number = ""  # of its device, as tables name it
        self._lock = Claim(self.name, f"the thin pool {self.name}")

    async def open(self) -> None:
        """Make or activate the pool, and see that it is this root's.

        Raises UnsupportedError, AgentError.
        """
        self._need_modules()
        self._lock.take()
        self.record = self._read_record()
        devices = await self._devices()
        active = dm.find(self.name)
        if active is not None and devices and not self._in_use(active):
            current = self.status()
            if current is None or current.needs_check or current.mode != "rw":
                dm.remove(self.name)  # it is checked before it is active again
                active = None
        if active is None or not active.active:
            if not devices:
                raise UnsupportedError(
                    f"the thin pool {self.name} is not active; activate it (lvchange -ay, dmsetup "
                    "create), or set storage.devmapper.data_device and metadata_device"
                )
            active = await self._activate(*devices)
        elif devices:
            self._compare(*devices)
            self._grow(*devices)
        self.number = active.number
        self._claim()

    def close(self) -> None:
        """Let another agent have it; it stays active, since containers use it."""
        self._lock.release()

    def status(self) -> PoolStatus | None:
        """Its status; None = it is not active."""
        try:
            (target,) = dm.status(self.name)
        except (OSError, ValueError):
            return None
        return pool_status.parse(target.arguments) if target.kind == "thin-pool" else None

    def metadata_device(self) -> Path:
        """The block device of its metadata. Raises OSError."""
        return dm.node_of(self._table()[0])

    def tell(self, text: str) -> None:
        """Send the pool a message. Raises OSError EEXIST, ENODATA, EBUSY; ExhaustedError,
        AgentError."""
        try:
            dm.message(self.name, text)
        except OSError as exc:
            if exc.errno in {errno.EEXIST, errno.ENODATA, errno.EBUSY}:
                raise
            if exc.errno == errno.ENXIO:
                raise AgentError(
                    f"the thin pool {self.name} is not active any more; restart criagent, which "
                    "activates it"
                ) from exc
            status = self.status()
            if exc.errno == errno.ENOSPC or (status is not None and status.full):
                raise ExhaustedError(self.full_text()) from exc
            raise AgentError(f"thin pool {self.name}: {text}: {exc.strerror}") from exc

    def full_text(self) -> str:
        """what a caller is told when the pool has no free block."""
        return (
            f"no space left in the thin pool {self.name}; remove pods and images, or enlarge it "
            "(docs/storage.md, devmapper)"
        )

    def keep(self, record: PoolRecord) -> None:
        """Write the record durably."""
        write_durably(self._record_file, msgspec.json.encode(record))
        self.record = record

    def _read_record(self) -> PoolRecord:
        try:
            return msgspec.json.decode(self._record_file.read_bytes(), type=PoolRecord)
        except FileNotFoundError:
            return PoolRecord(id=0)
        except msgspec.DecodeError as exc:
            raise AgentError(
                f"{self._record_file} cannot be read: {exc}; restore it, or set another "
                "storage.root"
            ) from exc

    def _need_modules(self) -> None:
        """Look for the target types; a table that names one makes the kernel load its module."""
        try:
            dm.names()
        except OSError as exc:
            raise UnsupportedError(
                f"the storage driver devmapper needs device-mapper: {exc}; load it with "
                "`modprobe dm_thin_pool`"
            ) from exc

    async def _devices(self) -> tuple[Path, Path] | None:
        """Metadata and data device; None = another program activates the pool."""
        section = self._section
        if self.on_files:
            made = await self.loops.attached(expected=bool(self.record.id))
            return made.metadata, made.data
        if section.data_device and section.metadata_device:
            for device in (section.metadata_device, section.data_device):
                if not Path(device).is_block_device():
                    raise UnsupportedError(
                        f"storage.devmapper: {device} is not a block device; attach it, or correct "
                        "data_device and metadata_device"
                    )
            return Path(section.metadata_device), Path(section.data_device)
        if section.pool:
            return None
        raise UnsupportedError(
            "the storage driver devmapper needs a thin pool: set storage.devmapper.data_device and "
            "metadata_device, or pool for one that exists, or loop_size_bytes to try it on files"
        )

    def _in_use(self, pool: dm.Device) -> bool:
        return pool.open_count > 0

    async def _activate(self, metadata: Path, data: Path) -> dm.Device:
        if self.record.id:
            await self._check(metadata)
        faults.reach("devmapper:pool-checked")
        size = dm.sectors(data)
        arguments = f"{metadata} {data} {BLOCK_SECTORS} 0 1 error_if_no_space"
        if (left := dm.find(self.name)) is not None:  # a create that a crash has interrupted
            dm.remove(left.name)
        try:
            made = dm.create(self.name, [dm.Target(size, "thin-pool", arguments)])
        except OSError as exc:
            raise self._activation_error(exc, metadata, data) from exc
        faults.reach("devmapper:pool-activated")
        return made

    def _activation_error(self, exc: OSError, metadata: Path, data: Path) -> AgentError:
        if "thin-pool" not in dm.target_types():
            return UnsupportedError(
                "the kernel has no thin-pool target; install the module dm_thin_pool (Debian: "
                "linux-image-amd64, Fedora: kernel-modules-core) and `modprobe dm_thin_pool`"
            )
        if exc.errno == errno.EBUSY:
            return UnsupportedError(
                f"{metadata} or {data} is in use, by another pool, a mount or LVM (lsblk, dmsetup "
                "table); give each agent its own devices"
            )
        return UnsupportedError(
            f"the thin pool {self.name} cannot be activated on {metadata} and {data}: "
            f"{exc.strerror}; check dmesg. New devices need an empty start of the metadata: "
            f"`dd if=/dev/zero of={metadata} bs=4096 count=1`"
        )

    async def _check(self, metadata: Path) -> None:
        """As LVM does before each activation; the kernel refuses a pool that needs one."""
        ended = await tool(["thin_check", "--clear-needs-check-flag", metadata], _TOOLS)
        if ended.status:
            raise AgentError(
                f"the metadata of the thin pool {self.name} on {metadata} are damaged: "
                f"{(ended.errors or ended.output).strip()[-300:]}; write them to another device "
                f"with `thin_repair -i {metadata} -o DEVICE` and make that the metadata_device"
            )

    def _table(self) -> list[str]:
        (target,) = dm.status(self.name, table=True)
        return target.arguments.split()

    def _compare(self, metadata: Path, data: Path) -> None:
        """An active pool of that name must be on these devices."""
        found = self._table()[:2]
        wanted = [_number(metadata), _number(data)]
        if found != wanted:
            raise UnsupportedError(
                f"the thin pool {self.name} is active on the devices {' and '.join(found)}, not on "
                f"{metadata} and {data} ({' and '.join(wanted)}); set another "
                "storage.devmapper.pool, or the devices that it is on"
            )

    def _grow(self, metadata: Path, data: Path) -> None:
        """Use devices that were enlarged: the kernel looks at both when the pool is resumed."""
        (target,) = dm.status(self.name, table=True)
        status, size = self.status(), max(dm.sectors(data), target.length)
        blocks = min(dm.sectors(metadata) * dm.SECTOR // _METADATA_BLOCK, _METADATA_BLOCKS)
        if size > target.length or (status is not None and blocks > status.metadata):
            dm.load(self.name, [dm.Target(size, target.kind, target.arguments)])
            dm.suspend(self.name, flush=False)
            dm.resume(self.name)
            log.info("storage_pool_grown", pool=self.name, bytes=size * dm.SECTOR)

    def _claim(self) -> None:
        """Make an empty pool this root's. Raises UnsupportedError for another's."""
        status = self.status()
        if status is None:
            raise UnsupportedError(f"the device {self.name} is not a thin pool")
        if status.mode == pool_status.FAILED:
            return  # `health` tells
        if self.record.id and status.transaction == self.record.id:
            return
        if status.transaction or status.used_data or self.record.base_sectors:
            raise UnsupportedError(
                f"the thin pool {self.name} does not belong to {self._root}: it has the "
                f"transaction id {status.transaction} instead of {self.record.id}; set the "
                "storage.root that it was made for, or give this one another pool or empty devices"
            )
        if not self.record.id:
            self.keep(PoolRecord(id=secrets.randbits(47) + 1))
        faults.reach("devmapper:pool-recorded")
        self.tell(f"set_transaction_id 0 {self.record.id}")


def _number(device: Path) -> str:
    number = device.stat().st_rdev
    return f"{os.major(number)}:{os.minor(number)}"
