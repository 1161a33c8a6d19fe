# SPDX-License-Identifier: Apache-2.0
"""inotify(7) by ctypes; the standard library has none. Synchronous, non-blocking reads."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from ctypes import c_int, c_uint32
from pathlib import Path

from criagent.kernel.syscalls import check, libc

IN_MODIFY = 0x2
IN_MOVED_TO = 0x80
IN_IGNORED = 0x8000

_EVENT = struct.Struct("iIII")


class Inotify:
    """One inotify descriptor; `fd` is for the event loop."""

    def __init__(self) -> None:
        self.fd = check(libc.inotify_init1(c_int(os.O_NONBLOCK | os.O_CLOEXEC)), "inotify_init1")

    def add(self, path: Path, mask: int) -> int:
        """Watch `path`; returns the watch descriptor."""
        result = libc.inotify_add_watch(c_int(self.fd), os.fsencode(path), c_uint32(mask))
        return check(result, "inotify_add_watch", path)

    def remove(self, watch: int) -> None:
        """Stop a watch; it may have ended by itself."""
        libc.inotify_rm_watch(c_int(self.fd), c_int(watch))

    def events(self) -> Iterator[tuple[int, int, str]]:
        """The pending events: (watch, mask, name)."""
        try:
            data = os.read(self.fd, 1 << 16)
        except BlockingIOError:
            return
        at = 0
        while at < len(data):
            watch, mask, _, length = _EVENT.unpack_from(data, at)
            at += _EVENT.size
            name = data[at : at + length].split(b"\0", 1)[0]
            at += length
            yield watch, mask, os.fsdecode(name)

    def close(self) -> None:
        """Close the descriptor; its watches end."""
        os.close(self.fd)
