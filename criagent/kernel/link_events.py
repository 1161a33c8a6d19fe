# SPDX-License-Identifier: Apache-2.0
"""Links that the kernel has removed, as it reports them (man 7 rtnetlink, group link).

Synchronous, no policy.
"""

from __future__ import annotations

import ctypes
import socket
import struct
import sys

from criagent.kernel.netlink import link_of, messages

_RTM_DELLINK = 17
_GROUP = 1  # RTMGRP_LINK
_SO_ATTACH_FILTER = 26
_ROOM = 1 << 20
# Classic BPF: load the half-word at 4, the type of the message; all of it, or nothing.
_LOAD_HALF, _JUMP_IF_EQUAL, _RETURN = 0x28, 0x15, 0x06


class LinkEvents:
    """A socket that receives removals, in the network namespace in which it was created."""

    def __init__(self) -> None:
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        self._socket = socket.socket(socket.AF_NETLINK, kind, socket.NETLINK_ROUTE)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _ROOM)
        _only(self._socket, _RTM_DELLINK)
        self._socket.bind((0, _GROUP))

    def fileno(self) -> int:
        """For the event loop."""
        return self._socket.fileno()

    def removed(self) -> set[str] | None:
        """Read pending events: names of links that are gone. None when events were lost."""
        found: set[str] = set()
        lost = False
        while True:
            try:
                data = self._socket.recv(1 << 16)
            except BlockingIOError:
                return None if lost else found
            except OSError:  # ENOBUFS
                lost = True
                continue
            for kind, _, body in messages(data):
                # The family of a port that leaves its bridge is AF_BRIDGE.
                if kind == _RTM_DELLINK and body[0] == socket.AF_UNSPEC:
                    found.add(link_of(body).name)

    def close(self) -> None:
        """Stop receiving."""
        self._socket.close()


def _only(receiver: socket.socket, kind: int) -> None:
    """Let the kernel drop messages of other types: each pod's start causes several of them."""
    # BPF loads big-endian numbers, netlink has those of the machine.
    swapped = int.from_bytes(kind.to_bytes(2, sys.byteorder), "big")
    program = b"".join(
        struct.pack("=HBBI", *instruction)
        for instruction in (
            (_LOAD_HALF, 0, 0, 4),
            (_JUMP_IF_EQUAL, 0, 1, swapped),
            (_RETURN, 0, 0, 0xFFFFFFFF),
            (_RETURN, 0, 0, 0),
        )
    )
    held = ctypes.create_string_buffer(program, len(program))
    fprog = struct.pack("@HP", len(program) // 8, ctypes.addressof(held))
    receiver.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, fprog)
