# SPDX-License-Identifier: Apache-2.0
"""A pool's two devices on files, to try the driver out: loop devices by losetup of util-linux."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from criagent.base.errors import AgentError, UnsupportedError
from criagent.image.blobs import disk_full
from criagent.image.snapshots.drivers.tools import tool
from criagent.process.child import Ended

_LEAST_METADATA, _MOST_METADATA = 4 << 20, 16 << 30
_LIMIT_S = 60


@dataclass(frozen=True, slots=True)
class LoopDevices:
    """The devices of the two files."""

    metadata: Path
    data: Path


class LoopFiles:
    """`<directory>/{metadata,data}`; the data file is sparse and has `size` bytes."""

    def __init__(self, directory: Path, size: int) -> None:
        self._directory = directory
        self._sizes = {
            "metadata": min(max(size // 512, _LEAST_METADATA), _MOST_METADATA),
            "data": size,
        }

    async def attached(self, *, expected: bool) -> LoopDevices:
        """Make the files unless they are `expected`, and attach each to a loop device.

        Raises UnsupportedError, AgentError, ExhaustedError.
        """
        if reason := self.missing(expected=expected):
            raise UnsupportedError(reason)
        self._directory.mkdir(exist_ok=True, mode=0o700)
        found = {}
        for name, size in self._sizes.items():
            file = self._directory / name
            with disk_full(self._directory):
                grown = _make(file, size, whole=name == "metadata")
            found[name] = await _attach(file)
            if grown:
                await _run("--set-capacity", found[name])
        return LoopDevices(**found)

    def missing(self, *, expected: bool = True) -> str:
        """What is to be told when a file that is there no longer was `expected`; "" = none."""
        for name in self._sizes:
            file = self._directory / name
            if expected and not file.exists():
                return (
                    f"the file {file} of the thin pool is gone, and the layers with it; restore it "
                    "(while its loop device is attached, by copying that), or set another "
                    "storage.root"
                )
        return ""


def _make(file: Path, size: int, *, whole: bool) -> bool:
    """Make the file, or let it grow to `size`; whether it has grown.

    The file of the metadata is allocated as a whole: a pool that cannot write them fails.
    """
    fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    before = os.fstat(fd).st_size
    try:
        if before >= size:
            return False
        os.ftruncate(fd, size)
        if whole:
            os.posix_fallocate(fd, 0, size)
        os.fsync(fd)
        return before > 0
    except OSError:
        if not before:
            file.unlink()
        raise
    finally:
        os.close(fd)


async def _attach(file: Path) -> Path:
    listed = await _run("--noheadings", "--output", "NAME", "--associated", file)
    if devices := listed.output.split():
        return Path(devices[0])
    with contextlib.suppress(AgentError):  # tmpfs, say, has no direct I/O
        made = await _run("--find", "--show", "--direct-io=on", file)
        return Path(made.output.strip())
    made = await _run("--find", "--show", file)
    return Path(made.output.strip())


async def _run(*arguments: str | Path) -> Ended:
    ended = await tool(["losetup", *arguments], "util-linux", limit_s=_LIMIT_S)
    if ended.status:
        raise AgentError(
            f"losetup {' '.join(map(str, arguments))}: {ended.errors.strip()[-300:]}; "
            "loop devices need the module loop (modprobe loop)"
        )
    return ended
