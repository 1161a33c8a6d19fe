# SPDX-License-Identifier: Apache-2.0
"""ext4 and xfs on thin volumes: made once, mounted often, enlarged for a limit."""

from __future__ import annotations

import os
from pathlib import Path

from criagent.base.errors import AgentError, ExhaustedError
from criagent.image.snapshots.drivers.tools import tool
from criagent.kernel import devicemapper, mount

# Inode tables and the journal stay unwritten: blocks that a thin volume lacks read as zeros.
_MAKE: dict[str, list[str]] = {
    "ext4": [
        "mkfs.ext4", "-q", "-F", "-m", "0", "-J", "size=16",
        "-E", "nodiscard,lazy_itable_init=1,lazy_journal_init=1",
    ],
    "xfs": ["mkfs.xfs", "-q", "-f", "-K"],
}  # fmt: skip
PACKAGES = {"ext4": "e2fsprogs", "xfs": "xfsprogs"}
_MOUNT = {"ext4": "discard,noinit_itable", "xfs": "discard,nouuid"}
_MOUNT_READONLY = {"ext4": "noload", "xfs": "norecovery,nouuid"}
_OVERHEAD = 1.05  # what a file system takes of its device for itself, and some
_SECTOR = 512


async def make(filesystem: str, node: Path) -> None:
    """Make an empty file system. Raises UnsupportedError, AgentError."""
    await _run([*_MAKE[filesystem], node], PACKAGES[filesystem])


def attach(filesystem: str, node: Path, disk: Path, *, label: str, readonly: bool) -> None:
    """Mount it. A read-only one is neither written to recover it nor for access times.

    Raises OSError.
    """
    data = (_MOUNT_READONLY if readonly else _MOUNT)[filesystem]
    if label:
        data += f',context="{label}"'
    mount.mount(node, disk, filesystem, mount.MS_RDONLY if readonly else 0, data)


def sectors_for(limit_bytes: int, below: int) -> int:
    """The size of a volume that may grow by `limit_bytes` over a layer in `below` sectors."""
    wanted = below + int(limit_bytes * _OVERHEAD) // _SECTOR
    return wanted + -wanted % 128


async def fit(filesystem: str, disk: Path, limit_bytes: int) -> None:
    """Leave `limit_bytes` free in the file system mounted at `disk`, whose device may be larger.

    A file that is allocated but never written takes what is too much: it needs no blocks of the
    pool. Raises AgentError, ExhaustedError.
    """
    if _free(disk) < limit_bytes:
        if filesystem == "ext4":
            await _run(["resize2fs", _device(disk)], PACKAGES[filesystem])
        else:
            await _run(["xfs_growfs", disk], PACKAGES[filesystem])
    if (spare := _free(disk) - limit_bytes) > 0:
        fd = os.open(disk / "reserved", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, spare)
        except OSError as exc:
            raise ExhaustedError(f"the limit of {limit_bytes} bytes cannot be set: {exc}") from exc
        finally:
            os.close(fd)


def _free(disk: Path) -> int:
    facts = os.statvfs(disk)
    return facts.f_bavail * facts.f_frsize


def _device(disk: Path) -> Path:
    number = disk.stat().st_dev
    return devicemapper.node_of(f"{os.major(number)}:{os.minor(number)}")


async def _run(argv: list[str | Path], package: str) -> None:
    ended = await tool(argv, package)
    if ended.status:
        output = (ended.errors or ended.output).strip()[-300:]
        raise AgentError(f"{argv[0]} on {argv[-1]}: {output}")
