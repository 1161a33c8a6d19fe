"""Changes of nftables, as the kernel tells them (netlink family netfilter, group nftables)."""

from __future__ import annotations

import socket
import struct

_NETLINK_NETFILTER = 12
_GROUP = 1 << (7 - 1)  # NFNLGRP_NFTABLES
_SUBSYSTEM = 10  # NFNL_SUBSYS_NFTABLES
_DELETED = {2, 5, 8}  # NFT_MSG_DELTABLE, NFT_MSG_DELCHAIN, NFT_MSG_DELRULE
_HEADER = struct.Struct("=IHHII")
_ROOM = 1 << 20


class NftEvents:
    """A socket on which deletions are heard, in the namespace in which it was made."""

    def __init__(self) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK,
            socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC,
            _NETLINK_NETFILTER,
        )
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _ROOM)
        self._socket.bind((0, _GROUP))

    def fileno(self) -> int:
        """For the event loop."""
        return self._socket.fileno()

    def deletes(self, table: str) -> bool:
        """Read what is there; whether a table, chain or rule of `table` was deleted."""
        found = False
        while True:
            try:
                data = self._socket.recv(1 << 16)
            except BlockingIOError:
                return found
            except OSError:
                return True  # events were lost (ENOBUFS): anything may have happened
            found = found or _tells(data, table.encode() + b"\0")

    def close(self) -> None:
        """Hear no more."""
        self._socket.close()


def _tells(data: bytes, name: bytes) -> bool:
    at = 0
    while at + _HEADER.size <= len(data):
        length, kind, *_ = _HEADER.unpack_from(data, at)
        if kind >> 8 == _SUBSYSTEM and kind & 0xFF in _DELETED and name in data[at : at + length]:
            return True
        at += max((length + 3) & ~3, _HEADER.size)
    return False
