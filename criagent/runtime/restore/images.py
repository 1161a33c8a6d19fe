# SPDX-License-Identifier: Apache-2.0
"""CRIU's images and options, made fit for another pod. Synchronous.

CRIU joins the namespaces of the new pod (`join-ns`), but writes into them what the old ones held:
the hostname, and objects of System V IPC. The images have a header of two magic numbers of 4 bytes,
then messages with their length in front (https://criu.org/Images); utsns_entry is
`{1: nodename, 2: domainname}`.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path

from criagent.base.errors import CorruptError

_MAGIC = 8
_MAX_NAME = 64  # __NEW_UTS_LEN of the kernel
_IPC_OBJECTS = ("ipcns-shm-*.img", "ipcns-msg-*.img", "ipcns-sem-*.img")


def set_hostname(images: Path, hostname: str) -> None:
    """Have CRIU set the new pod's hostname. Raises CorruptError, OSError."""
    for path in images.glob("utsns-*.img"):
        content = path.read_bytes()
        fields = _texts(content[_MAGIC + 4 :])
        message = b"".join(
            bytes((number << 3 | 2, len(text))) + text
            for number, text in ((1, hostname.encode()), (2, fields.get(2, b"(none)")))
        )
        path.write_bytes(content[:_MAGIC] + struct.pack("<I", len(message)) + message)


def drop_ipc_objects(images: Path) -> None:
    """Leave shared memory, queues and semaphores of System V out: another container of the pod
    brings them.
    """
    for pattern in _IPC_OBJECTS:
        for path in images.glob(pattern):
            path.unlink()


def write_options(home: Path, cgroup: str, pins: Mapping[str, Path]) -> None:
    """Write the options that OCI runtimes do not pass on, for a container of the pod whose
    namespaces are pinned at `pins`.

    The controller before the colon of `cgroup-root` is that of cgroup v2, which has no name. The
    pod has another address, so its connections are restored as closed.
    """
    lines = ["tcp-close", "network-lock skip", f"cgroup-root :/{cgroup.strip('/')}"]
    lines += [f"join-ns {kind}:{pins[kind]}" for kind in ("uts", "ipc") if kind in pins]
    directory = home / ".criu"
    directory.mkdir(mode=0o700, parents=True)
    (directory / "default.conf").write_text("".join(f"{line}\n" for line in lines))


def _texts(message: bytes) -> dict[int, bytes]:
    """The fields of a message that has nothing but short texts."""
    found, at = {}, 0
    while at < len(message):
        size = message[at + 1] if at + 1 < len(message) else _MAX_NAME + 1
        if message[at] & 7 != 2 or size > _MAX_NAME or at + 2 + size > len(message):
            raise CorruptError("CRIU's image of the hostname is malformed")
        found[message[at] >> 3] = message[at + 2 : at + 2 + size]
        at += 2 + size
    return found
