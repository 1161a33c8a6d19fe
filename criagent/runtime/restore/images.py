# SPDX-License-Identifier: Apache-2.0
"""CRIU's images and options, made fit for another pod. Synchronous.

CRIU joins the namespaces of the new pod (`join-ns`), but writes into them what the old ones held:
the hostname, and objects of System V IPC. The images have a header of two magic numbers of 4 bytes,
then messages with their length in front (https://criu.org/Images). The messages here are

    utsns_entry          1: nodename, 2: domainname
    cgroup_entry         1: cg_set_entry (2: cg_member_entry), 2: cg_controller_entry (1: cnames)
    cg_member_entry      1: name of the controller, "" for cgroup v2
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

from criagent.base.errors import CorruptError

_MAGIC = 8
_MAX_NAME = 64  # __NEW_UTS_LEN of the kernel
_BYTES = 2  # wire type of texts and messages
_IPC_OBJECTS = ("ipcns-shm-*.img", "ipcns-msg-*.img", "ipcns-sem-*.img")


def set_hostname(images: Path, hostname: str) -> None:
    """Have CRIU set the new pod's hostname. Raises CorruptError, OSError."""
    for path in images.glob("utsns-*.img"):
        magic, message = _read(path)
        texts = {number: content for number, content, _ in _fields(message)}
        if any(len(content) > _MAX_NAME for content in texts.values()):
            raise CorruptError(f"CRIU's image {path.name} is malformed")
        fields = ((1, hostname.encode()), (2, texts.get(2, b"(none)")))
        _write(path, magic, b"".join(_field(number, text) for number, text in fields))


def keep_cgroup_v2(images: Path) -> None:
    """Have CRIU restore nothing of cgroups v1. Raises CorruptError, OSError.

    A kernel that has both tells CRIU the container's place in each. crun has CRIU make the same
    path in every hierarchy, and nothing removes it there.
    """
    for path in images.glob("cgroup.img"):
        magic, message = _read(path)
        kept = []
        for number, content, encoded in _fields(message):
            if number == 1:
                members = (
                    encoded
                    for kind, member, encoded in _fields(content)
                    if kind != 2 or _name(member) == b""
                )
                kept.append(_field(1, b"".join(members)))
            elif number != 2 or _name(content) == b"":
                kept.append(encoded)
        _write(path, magic, b"".join(kept))


def drop_ipc_objects(images: Path) -> None:
    """Leave shared memory, queues and semaphores of System V out: another container of the pod
    brings them.
    """
    for pattern in _IPC_OBJECTS:
        for path in images.glob(pattern):
            path.unlink()


def write_options(home: Path, cgroup: str, pins: Mapping[str, Path]) -> None:
    """Write the options that OCI runtimes do not pass on, for a container of the pod whose
    namespaces are pinned at `pins`; with "" the runtime names the `cgroup` itself.

    The controller before the colon of `cgroup-root` is that of cgroup v2, which has no name. The
    pod has another address, so its connections are restored as closed.
    """
    lines = ["tcp-close", "network-lock skip"]
    lines += [f"cgroup-root :/{cgroup.strip('/')}"] if cgroup else []
    lines += [f"join-ns {kind}:{pins[kind]}" for kind in ("uts", "ipc") if kind in pins]
    directory = home / ".criu"
    directory.mkdir(mode=0o700, parents=True)
    (directory / "default.conf").write_text("".join(f"{line}\n" for line in lines))


def _read(path: Path) -> tuple[bytes, bytes]:
    """The header of an image that has one message, and the message."""
    content = path.read_bytes()
    message = content[_MAGIC + 4 :]
    if content[_MAGIC : _MAGIC + 4] != struct.pack("<I", len(message)):
        raise CorruptError(f"CRIU's image {path.name} is malformed")
    return content[:_MAGIC], message


def _write(path: Path, magic: bytes, message: bytes) -> None:
    path.write_bytes(magic + struct.pack("<I", len(message)) + message)


def _name(message: bytes) -> bytes:
    """The field 1 of a message, which is a text."""
    return next((content for number, content, _ in _fields(message) if number == 1), b"")


def _fields(message: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Number, content and encoded whole of each field; fields of numbers have no content."""
    at = 0
    while at < len(message):
        start = at
        key, at = _varint(message, at)
        content = b""
        size, at = _varint(message, at)
        if key & 7 == _BYTES:
            content = message[at : at + size]
            at += size
        elif key & 7:
            raise CorruptError("an image of CRIU has a field of an unknown kind")
        if at > len(message):
            raise CorruptError("an image of CRIU ends within a field")
        yield key >> 3, content, message[start:at]


def _field(number: int, content: bytes) -> bytes:
    size, length = len(content), b""
    while size > 0x7F:
        length += bytes((size & 0x7F | 0x80,))
        size >>= 7
    return bytes((number << 3 | _BYTES,)) + length + bytes((size,)) + content


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """The number at `at`, and where it ends."""
    value = 0
    for shift in range(0, 64, 7):
        if at >= len(message):
            break
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise CorruptError("an image of CRIU ends within a number")
