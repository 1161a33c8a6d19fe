# SPDX-License-Identifier: Apache-2.0
"""Device-mapper by its ioctls (linux/dm-ioctl.h). Synchronous, no policy.

`dmsetup` does the same in a process of its own, and waits for udev each time. The node of a device
is that of devtmpfs, /dev/dm-N, which is there at once.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_CONTROL = "/dev/mapper/control"
_LIST, _CREATE, _REMOVE, _SUSPEND, _STATUS, _LOAD, _TABLE, _MESSAGE = 2, 3, 4, 6, 7, 9, 12, 14
_VERSIONS = 13
_READONLY, _SUSPENDED, _TABLE_NOT_STATUS, _ACTIVE = 1 << 0, 1 << 1, 1 << 4, 1 << 5
_BUFFER_FULL, _NOFLUSH, _DEFERRED = 1 << 8, 1 << 11, 1 << 17
_HEAD = struct.Struct("=3I I I I i I I I Q 128s 129s 7x")  # struct dm_ioctl
_SPEC = struct.Struct("=Q Q i I 16s")  # struct dm_target_spec
_BLKDISCARD, _BLKGETSIZE64 = 0x1277, 0x80081272
SECTOR = 512


@dataclass(frozen=True, slots=True)
class Target:
    """One line of a device's table: its type and the type's own arguments; lengths in sectors."""

    length: int
    kind: str
    arguments: str
    start: int = 0


@dataclass(frozen=True, slots=True)
class Device:
    """What the kernel says of a device."""

    name: str
    major: int
    minor: int
    open_count: int
    active: bool
    suspended: bool
    readonly: bool

    @property
    def node(self) -> Path:
        """Its node in /dev."""
        return Path(f"/dev/dm-{self.minor}")

    @property
    def number(self) -> str:
        """As tables name it."""
        return f"{self.major}:{self.minor}"


def create(name: str, targets: Sequence[Target], *, readonly: bool = False) -> Device:
    """A new device with that table, active. Raises OSError, EBUSY when the name is taken."""
    _call(_CREATE, name)
    try:
        load(name, targets, readonly=readonly)
        return resume(name)
    except OSError:
        with contextlib.suppress(OSError):
            _call(_REMOVE, name)
        raise


def load(name: str, targets: Sequence[Target], *, readonly: bool = False) -> None:
    """Give a device another table, which `resume` makes the active one. Raises OSError."""
    specs = b""
    for target in targets:
        arguments = target.arguments.encode() + b"\0"
        arguments += b"\0" * (-len(arguments) % 8)
        size = _SPEC.size + len(arguments)
        specs += _SPEC.pack(target.start, target.length, 0, size, target.kind.encode()) + arguments
    _call(_LOAD, name, specs, flags=_READONLY if readonly else 0, count=len(targets))


def suspend(name: str, *, flush: bool = True) -> None:
    """Hold new requests, after what is under way is finished; a file system on it is frozen."""
    _call(_SUSPEND, name, flags=_SUSPENDED | (0 if flush else _NOFLUSH))


def resume(name: str) -> Device:
    """Make the loaded table the active one, and go on."""
    return _device(name, _call(_SUSPEND, name))


def remove(name: str, *, deferred: bool = False) -> None:
    """Remove a device, with `deferred` once nobody has it open. Raises OSError, EBUSY; ENXIO when
    there is none."""
    _call(_REMOVE, name, flags=_DEFERRED if deferred else 0)


def find(name: str) -> Device | None:
    """The device of that name; None = there is none. Raises OSError."""
    try:
        return _device(name, _call(_STATUS, name))
    except OSError as exc:
        if exc.errno in {errno.ENXIO, errno.ENODEV}:
            return None
        raise


def message(name: str, text: str) -> None:
    """Tell the first target of a device something. Raises OSError."""
    _call(_MESSAGE, name, struct.pack("=Q", 0) + text.encode() + b"\0")


def status(name: str, *, table: bool = False) -> list[Target]:
    """The status of each target of the active table, or the table itself. Raises OSError ENXIO."""
    flags = _NOFLUSH | (_TABLE_NOT_STATUS if table else 0)
    head, data = _call(_TABLE, name, flags=flags)
    found, at = [], 0
    for _ in range(head[5]):
        start, length, _, following, kind = _SPEC.unpack_from(data, at)
        arguments = data[at + _SPEC.size :].partition(b"\0")[0].decode(errors="replace")
        kind_name = kind.rstrip(b"\0").decode()
        found.append(Target(length=length, kind=kind_name, arguments=arguments, start=start))
        at = following
    return found


def names() -> list[str]:
    """The names of all devices. Raises OSError."""
    head, data = _call(_LIST, "")
    return [name for name, _ in _list(data)] if head[3] > _HEAD.size else []


def target_types() -> frozenset[str]:
    """The target types whose modules are loaded. Raises OSError."""
    _, data = _call(_VERSIONS, "")
    found, at = set(), 0
    while at + 16 < len(data):
        (following,) = struct.unpack_from("=I", data, at)
        found.add(data[at + 16 :].partition(b"\0")[0].decode())
        if not following:
            break
        at += following
    return frozenset(found)


def discard(node: Path) -> None:
    """Give back all blocks of a block device (BLKDISCARD). Raises OSError."""
    fd = os.open(node, os.O_WRONLY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, _BLKDISCARD, struct.pack("=QQ", 0, _size(fd)))
    finally:
        os.close(fd)


def sectors(node: Path) -> int:
    """The size of a block device in sectors. Raises OSError."""
    fd = os.open(node, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return _size(fd) // SECTOR
    finally:
        os.close(fd)


def node_of(number: str) -> Path:
    """The node of a block device "major:minor": devtmpfs has it before udev makes any link.

    Raises OSError.
    """
    return Path("/dev") / Path("/sys/dev/block", number).readlink().name


def _size(fd: int) -> int:
    (size,) = struct.unpack("=Q", fcntl.ioctl(fd, _BLKGETSIZE64, bytes(8)))
    return int(size)


def _list(data: bytes) -> Iterator[tuple[str, int]]:
    at = 0
    while at + 12 < len(data):
        device, following = struct.unpack_from("=QI", data, at)
        if not device:  # the list is empty
            return
        yield data[at + 12 :].partition(b"\0")[0].decode(), device
        if not following:
            return
        at += following


def _device(name: str, answer: tuple[tuple[int, ...], bytes]) -> Device:
    head = answer[0]
    flags, number = head[7], head[10]
    return Device(
        name=name,
        major=(number >> 8) & 0xFFF,
        minor=(number & 0xFF) | ((number >> 12) & 0xFFF00),
        open_count=head[6],
        active=bool(flags & _ACTIVE),
        suspended=bool(flags & _SUSPENDED),
        readonly=bool(flags & _READONLY),
    )


def _call(
    command: int, name: str, data: bytes = b"", *, flags: int = 0, count: int = 0
) -> tuple[tuple[int, ...], bytes]:
    """One ioctl: the fields of the answer's head, and what follows it."""
    request = (3 << 30) | (_HEAD.size << 16) | (0xFD << 8) | command
    room = max(16384, _HEAD.size + len(data))
    control = os.open(_CONTROL, os.O_RDWR | os.O_CLOEXEC)
    try:
        while True:
            head = _HEAD.pack(
                4, 0, 0, room, _HEAD.size, count, 0, flags, 0, 0, 0, name.encode(), b""
            )
            buffer = bytearray((head + data).ljust(room, b"\0"))
            try:
                fcntl.ioctl(control, request, buffer)
            except OSError as exc:
                text = os.strerror(exc.errno or 0)
                raise OSError(exc.errno, text, f"device-mapper {name}") from None
            fields = _HEAD.unpack_from(buffer)
            if not fields[7] & _BUFFER_FULL:
                return fields, bytes(buffer[fields[4] : max(fields[3], fields[4])])
            room *= 4
    finally:
        os.close(control)
