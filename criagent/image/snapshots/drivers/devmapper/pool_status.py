# SPDX-License-Identifier: Apache-2.0
"""What the kernel says of a thin pool (kernel documentation, device-mapper, thin-provisioning)."""

from __future__ import annotations

from dataclasses import dataclass

READ_ONLY, OUT_OF_DATA, FAILED = "ro", "out_of_data_space", "Fail"
_FIELDS = 8  # of the shortest status line


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolStatus:
    """A pool's status line; blocks of metadata and of data."""

    mode: str  # "rw", READ_ONLY, OUT_OF_DATA or FAILED
    transaction: int = 0
    used_metadata: int = 0
    metadata: int = 1
    used_data: int = 0
    data: int = 1
    held_root: bool = False
    needs_check: bool = False

    @property
    def full(self) -> str:
        """What has run out: "data" or "metadata"; "" = neither."""
        if self.mode == OUT_OF_DATA or self.used_data >= self.data:
            return "data"
        if self.mode in {READ_ONLY, FAILED} or self.used_metadata >= self.metadata:
            return "metadata"
        return ""

    @property
    def data_percent(self) -> float:
        """How much of the data device is in use."""
        return 100 * self.used_data / self.data

    @property
    def metadata_percent(self) -> float:
        """How much of the metadata device is in use."""
        return 100 * self.used_metadata / self.metadata


def parse(arguments: str) -> PoolStatus:
    """The status in the arguments of a thin-pool target. Raises ValueError."""
    fields = arguments.split()
    if fields[:1] in (["Fail"], ["Error"]):
        return PoolStatus(mode=FAILED)
    if len(fields) < _FIELDS:
        raise ValueError(f"status of a thin pool: {arguments!r}")
    (used_metadata, metadata), (used_data, data) = (_pair(field) for field in fields[1:3])
    return PoolStatus(
        mode=fields[4],
        transaction=int(fields[0]),
        used_metadata=used_metadata,
        metadata=metadata,
        used_data=used_data,
        data=data,
        held_root=fields[3] != "-",
        needs_check="needs_check" in fields[7:],
    )


def problem(pool: str, status: PoolStatus, watermark_percent: int) -> str:
    """Why a node with that pool must not get more pods, with the cure; "" = it may."""
    if status.mode == FAILED:
        return (
            f"the thin pool {pool} has failed: its metadata cannot be read or written; check "
            f"dmesg, stop the pods, then `dmsetup remove {pool}` and restart criagent, which "
            "checks it"
        )
    if status.needs_check or status.mode == READ_ONLY:
        return (
            f"the thin pool {pool} is read-only because its metadata ran full or could not be "
            f"written; stop the pods, enlarge the metadata device, `dmsetup remove {pool}` and "
            "restart criagent, which checks and activates it"
        )
    for what, percent in (("data", status.data_percent), ("metadata", status.metadata_percent)):
        if percent >= watermark_percent:
            return (
                f"the {what} of the thin pool {pool} is {percent:.0f} % full; remove pods and "
                "images, or enlarge the pool (docs/storage.md, devmapper)"
            )
    return ""


def _pair(field: str) -> tuple[int, int]:
    used, _, total = field.partition("/")
    return int(used), max(1, int(total))
