# SPDX-License-Identifier: Apache-2.0
"""Changes of nftables, as the kernel reports them (netlink family netfilter, group nftables).

The ruleset of a network namespace has a generation, which each transaction increments. The kernel
sends a transaction's changes and then its generation, so a deletion can be distinguished from a
later rewriting, whoever made them. Synchronous, no policy.
"""

from __future__ import annotations

import socket
import struct

_NETLINK_NETFILTER = 12
_GROUP = 1 << (7 - 1)  # NFNLGRP_NFTABLES
_SUBSYSTEM = 10  # NFNL_SUBSYS_NFTABLES
_DELETED = {2, 5, 8}  # NFT_MSG_DELTABLE, NFT_MSG_DELCHAIN, NFT_MSG_DELRULE
_NEWGEN, _GETGEN = 15, 16
_REQUEST = 1  # NLM_F_REQUEST
_GEN_ID = 1  # NFTA_GEN_ID
_HEADER = struct.Struct("=IHHII")
_ROOM = 1 << 20


class NftEvents:
    """A socket that receives deletions, in the namespace in which it was created."""

    def __init__(self) -> None:
        self._socket = _socket(socket.SOCK_NONBLOCK)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _ROOM)
        self._socket.bind((0, _GROUP))
        self._deleted = False

    def fileno(self) -> int:
        """For the event loop."""
        return self._socket.fileno()

    def deletions(self, table: str) -> int | None:
        """Read pending events; the last generation that deleted from `table`, 0 for none.

        A table, chain or rule counts. None when events were lost: anything may have happened.
        """
        found: int | None = 0
        name = table.encode() + b"\0"
        while True:
            try:
                data = self._socket.recv(1 << 16)
            except BlockingIOError:
                return found
            except OSError:  # ENOBUFS
                found = None
                continue
            for kind, body in _messages(data):
                if kind in _DELETED:
                    self._deleted = self._deleted or name in body
                elif kind == _NEWGEN:
                    if self._deleted and found is not None:
                        found = _generation(body)
                    self._deleted = False

    def close(self) -> None:
        """Stop receiving."""
        self._socket.close()


def generation() -> int:
    """The generation of this network namespace's ruleset."""
    with _socket() as asking:
        request = struct.pack("=BBH", socket.AF_UNSPEC, 0, 0)
        kind = _SUBSYSTEM << 8 | _GETGEN
        asking.send(_HEADER.pack(_HEADER.size + len(request), kind, _REQUEST, 1, 0) + request)
        for kind, body in _messages(asking.recv(1 << 12)):
            if kind == _NEWGEN:
                return _generation(body)
    raise OSError("the kernel did not report a generation of nftables")


def _socket(flags: int = 0) -> socket.socket:
    kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | flags
    return socket.socket(socket.AF_NETLINK, kind, _NETLINK_NETFILTER)


def _messages(data: bytes) -> list[tuple[int, bytes]]:
    """Types, without the subsystem, and bodies of the messages about nftables."""
    found = []
    at = 0
    while at + _HEADER.size <= len(data):
        length, kind, *_ = _HEADER.unpack_from(data, at)
        if kind >> 8 == _SUBSYSTEM:
            found.append((kind & 0xFF, data[at + _HEADER.size : at + length]))
        at += max((length + 3) & ~3, _HEADER.size)
    return found


def _generation(body: bytes) -> int:
    """The attribute NFTA_GEN_ID, which comes first (after struct nfgenmsg)."""
    _, kind = struct.unpack_from("=HH", body, 4)
    (number,) = struct.unpack_from(">I", body, 8)
    if kind != _GEN_ID:
        raise OSError("the kernel did not report a generation of nftables")
    return int(number)
