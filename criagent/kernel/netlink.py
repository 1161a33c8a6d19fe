# SPDX-License-Identifier: Apache-2.0
"""Route netlink (man 7 rtnetlink): the few requests that set up a pod's network.

Hand-encoded, because two sends per pod are several times faster than a general library, and because
the library's namespace support forks (docs/adr/0014). Requests are synchronous; run them in the
network thread.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

_RTM_NEWLINK, _RTM_DELLINK, _RTM_SETLINK, _RTM_GETLINK = 16, 17, 19, 18
_RTM_NEWADDR, _RTM_NEWROUTE, _RTM_GETROUTE = 20, 24, 26
_NLM_REQUEST_ACK = 0x1 | 0x4
_NLM_CREATE_EXCL = 0x400 | 0x200
_NLM_CREATE_REPLACE = 0x400 | 0x100
_NLM_DUMP = 0x300
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_IFF_UP = 1
_SIOCGIFINDEX = 0x8933  # man 7 netdevice
_NESTED = 0x8000

_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_MASTER, _IFLA_LINKINFO = 1, 3, 4, 10, 18
_IFLA_AF_SPEC, _IFLA_NET_NS_FD, _IFLA_PROTINFO = 26, 28, 12
_IFLA_LINK, _IFLA_LINK_NETNSID, _IFLA_TARGET_NETNSID = 5, 37, 46
_IFLA_EXT_MASK, _SKIP_STATISTICS = 29, 1 << 3  # half of a message
_IFLA_INFO_KIND, _IFLA_INFO_DATA, _VETH_INFO_PEER = 1, 2, 1
_IFLA_BRPORT_MODE = 4  # hairpin
_IFLA_BR_MULTI_BOOLOPT, _NO_LL_LEARN = 46, 1 << 0
_IFA_ADDRESS, _IFA_LOCAL, _IFA_FLAGS, _IFA_F_NODAD = 1, 2, 8, 0x02
_RTA_DST, _RTA_OIF, _RTA_GATEWAY = 1, 4, 5
_RTNH_F_ONLINK = 4

Address = IPv4Address | IPv6Address


def _attribute(kind: int, data: bytes) -> bytes:
    length = 4 + len(data)
    return struct.pack("=HH", length, kind) + data + bytes(-length % 4)


def _nest(kind: int, *parts: bytes) -> bytes:
    return _attribute(kind | _NESTED, b"".join(parts))


def _u32(kind: int, number: int) -> bytes:
    return _attribute(kind, struct.pack("=I", number))


def _text(kind: int, text: str) -> bytes:
    return _attribute(kind, text.encode() + b"\0")


def _link_header(index: int = 0, flags: int = 0, family: int = 0) -> bytes:
    return struct.pack("=BxHiII", family, 0, index, flags, flags)


@dataclass(frozen=True, slots=True)
class Request:
    """One message: purpose (for errors), type, flags, body."""

    purpose: str
    kind: int
    flags: int
    body: bytes


@dataclass(frozen=True, slots=True)
class End:
    """One end of a veth pair: its name and its hardware address, six bytes."""

    name: str
    mac: bytes


def veth(host: End, peer: End, bridge: int, netns: int, mtu: int) -> Request:
    """A veth pair: `host` up and in `bridge`, `peer` created directly within `netns`."""
    peer_part = _link_header() + _end(peer, mtu) + _u32(_IFLA_NET_NS_FD, netns)
    info = _nest(
        _IFLA_LINKINFO,
        _attribute(_IFLA_INFO_KIND, b"veth"),
        _nest(_IFLA_INFO_DATA, _nest(_VETH_INFO_PEER, peer_part)),
    )
    body = _link_header(0, _IFF_UP) + _end(host, mtu) + _u32(_IFLA_MASTER, bridge) + info
    return Request(f"veth {host.name}", _RTM_NEWLINK, _NLM_CREATE_EXCL, body)


def _end(end: End, mtu: int) -> bytes:
    return _text(_IFLA_IFNAME, end.name) + _attribute(_IFLA_ADDRESS, end.mac) + _u32(_IFLA_MTU, mtu)


def bridge(name: str) -> Request:
    """A bridge, up."""
    info = _nest(_IFLA_LINKINFO, _attribute(_IFLA_INFO_KIND, b"bridge"))
    body = _link_header(0, _IFF_UP) + _text(_IFLA_IFNAME, name) + info
    return Request(f"bridge {name}", _RTM_NEWLINK, _NLM_CREATE_EXCL, body)


def no_link_local_learning(name: str) -> Request:
    """Keep a bridge from learning hardware addresses from frames to 01:80:c2:00:00:0x.

    These frames reach the bridge without passing any filter.
    """
    options = struct.pack("=II", _NO_LL_LEARN, _NO_LL_LEARN)
    info = _nest(
        _IFLA_LINKINFO,
        _attribute(_IFLA_INFO_KIND, b"bridge"),
        _nest(_IFLA_INFO_DATA, _attribute(_IFLA_BR_MULTI_BOOLOPT, options)),
    )
    body = _link_header() + _text(_IFLA_IFNAME, name) + info
    return Request(f"options of bridge {name}", _RTM_NEWLINK, 0, body)


def join(index: int, bridge: int) -> Request:
    """Make an interface a port of a bridge."""
    body = _link_header(index) + _u32(_IFLA_MASTER, bridge)
    return Request("port of the bridge", _RTM_SETLINK, 0, body)


def hairpin(index: int) -> Request:
    """Let a bridge port send a frame back where it came from: a pod that reaches itself."""
    body = _link_header(index, family=socket.AF_BRIDGE) + _nest(
        _IFLA_PROTINFO, _attribute(_IFLA_BRPORT_MODE, b"\1")
    )
    return Request("hairpin", _RTM_SETLINK, 0, body)


def set_mac(index: int, mac: bytes) -> Request:
    """Set a hardware address, which a bridge then keeps when ports come and go."""
    body = _link_header(index) + _attribute(_IFLA_ADDRESS, mac)
    return Request("hardware address", _RTM_SETLINK, 0, body)


def set_up(index: int) -> Request:
    """An interface, up."""
    return Request("link up", _RTM_NEWLINK, 0, _link_header(index, _IFF_UP))


def delete_link(index: int) -> Request:
    """Delete an interface; the peer of a veth goes with it."""
    return Request("link delete", _RTM_DELLINK, 0, _link_header(index))


def address(index: int, addr: Address, prefix: int) -> Request:
    """An address on an interface, usable at once (no duplicate address detection)."""
    family = socket.AF_INET if addr.version == 4 else socket.AF_INET6
    body = struct.pack("=BBBBI", family, prefix, 0, 0, index)
    body += _attribute(_IFA_LOCAL, addr.packed) + _attribute(_IFA_ADDRESS, addr.packed)
    body += _u32(_IFA_FLAGS, _IFA_F_NODAD)
    return Request(f"address {addr}/{prefix}", _RTM_NEWADDR, _NLM_CREATE_REPLACE, body)


def default_route(index: int, gateway: Address) -> Request:
    """The default route by a gateway that is on the link although it is in none of its subnets."""
    family = socket.AF_INET if gateway.version == 4 else socket.AF_INET6
    body = struct.pack("=BBBBBBBBI", family, 0, 0, 0, 254, 3, 0, 1, _RTNH_F_ONLINK)
    body += _attribute(_RTA_GATEWAY, gateway.packed) + _u32(_RTA_OIF, index)
    return Request(f"default route by {gateway}", _RTM_NEWROUTE, _NLM_CREATE_EXCL, body)


@dataclass(frozen=True, slots=True)
class Link:
    """An interface. `peer` is (index, id of its network namespace) of a veth's end elsewhere."""

    index: int
    name: str
    mac: bytes
    mtu: int
    peer: tuple[int, int] | None


class RouteSocket:
    """A NETLINK_ROUTE socket; it stays in the network namespace in which it was opened."""

    def __init__(self) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
        )
        self._socket.bind((0, 0))
        self._sequence = 0

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def __enter__(self) -> RouteSocket:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(
        self, requests: Sequence[Request], *, exist_ok: bool = False, gone_ok: bool = False
    ) -> None:
        """Send all requests in one datagram and check each answer.

        The first failure is raised as OSError naming its purpose; with `exist_ok` an object that
        already exists is no failure, and with `gone_ok` an interface that no longer exists.
        """
        fine = {0, *([errno.EEXIST] if exist_ok else []), *([errno.ENODEV] if gone_ok else [])}
        first = self._sequence + 1
        parts: list[bytes] = []
        for request in requests:
            self._sequence += 1
            length = 16 + len(request.body)
            flags = _NLM_REQUEST_ACK | request.flags
            parts.append(struct.pack("=IHHII", length, request.kind, flags, self._sequence, 0))
            parts.append(request.body)
        self._socket.send(b"".join(parts))
        failure: OSError | None = None
        for _ in requests:
            number, sequence = self._acknowledgement()
            if number not in fine and failure is None:
                purpose = requests[sequence - first].purpose
                failure = OSError(number, f"netlink: {os.strerror(number)}", purpose)
        if failure is not None:
            raise failure

    def index_of(self, name: str) -> int:
        """Index of an interface of the socket's namespace. Raises OSError."""
        request = struct.pack("16sI20x", name.encode(), 0)
        answer = fcntl.ioctl(self._socket, _SIOCGIFINDEX, request)
        (index,) = struct.unpack_from("=i", answer, 16)
        return int(index)

    def default_mtu(self) -> int:
        """MTU of the interface of the default route, 1500 when there is none."""
        index = next((r for r in self._default_routes()), 0)
        link = self.link(index) if index else None
        return 1500 if link is None else link.mtu

    def links(self) -> list[Link]:
        """Every interface of the socket's network namespace."""
        body = _link_header() + _u32(_IFLA_EXT_MASK, _SKIP_STATISTICS)
        return [link_of(data) for data in self._dump(_RTM_GETLINK, body)]

    def link(self, index: int) -> Link | None:
        """One interface of the socket's network namespace; None if there is none."""
        return self._link(_link_header(index))

    def peer_mac(self, link: Link) -> bytes:
        """The hardware address of the other end of `link`, a veth; b"" if it cannot be read."""
        if link.peer is None:
            return b""
        index, netns = link.peer
        found = self._link(_link_header(index) + _u32(_IFLA_TARGET_NETNSID, netns))
        return b"" if found is None else found.mac

    def _link(self, body: bytes) -> Link | None:
        self._sequence += 1
        head = struct.pack("=IHHII", 16 + len(body), _RTM_GETLINK, 1, self._sequence, 0)
        self._socket.send(head + body)
        for kind, _, data in messages(self._socket.recv(65536)):
            if kind == _RTM_NEWLINK:
                return link_of(data)
        return None

    def _acknowledgement(self) -> tuple[int, int]:
        while True:
            for kind, sequence, body in messages(self._socket.recv(65536)):
                if kind == _NLMSG_ERROR:
                    (number,) = struct.unpack_from("=i", body)
                    return -number, sequence

    def _dump(self, kind: int, body: bytes) -> Iterator[bytes]:
        self._sequence += 1
        head = struct.pack("=IHHII", 16 + len(body), kind, 1 | _NLM_DUMP, self._sequence, 0)
        self._socket.send(head + body)
        while True:
            for answer, _, data in messages(self._socket.recv(1 << 17)):
                if answer in {_NLMSG_DONE, _NLMSG_ERROR}:
                    return
                yield data

    def _default_routes(self) -> list[int]:
        found = []
        for data in self._dump(_RTM_GETROUTE, struct.pack("=B11x", socket.AF_INET)):
            attributes = _attributes(data[12:])
            if data[1] == 0 and _RTA_DST not in attributes and _RTA_OIF in attributes:
                found.append(int.from_bytes(attributes[_RTA_OIF], "little"))
        return found


def link_of(data: bytes) -> Link:
    """The interface that the body of a message about links describes."""
    (index,) = struct.unpack_from("=4xi", data)
    attributes = _attributes(data[16:])
    peer = None
    if _IFLA_LINK in attributes and _IFLA_LINK_NETNSID in attributes:
        peer = _number(attributes[_IFLA_LINK]), _number(attributes[_IFLA_LINK_NETNSID])
    return Link(
        index=index,
        name=attributes.get(_IFLA_IFNAME, b"").rstrip(b"\0").decode(errors="replace"),
        mac=attributes.get(_IFLA_ADDRESS, b""),
        mtu=_number(attributes.get(_IFLA_MTU, b"")),
        peer=peer,
    )


def _number(data: bytes) -> int:
    return int.from_bytes(data, sys.byteorder)


def index_of(name: str) -> int | None:
    """Index of an interface of this thread's namespace, or None."""
    with contextlib.suppress(OSError):
        return socket.if_nametoindex(name)
    return None


def messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Types, sequence numbers and bodies of the messages in a datagram."""
    offset = 0
    while offset + 16 <= len(data):
        length, kind, _, sequence, _ = struct.unpack_from("=IHHII", data, offset)
        yield kind, sequence, data[offset + 16 : offset + length]
        offset += (length + 3) & ~3


def _attributes(data: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    offset = 0
    while offset + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, offset)
        found[kind & 0x3FFF] = data[offset + 4 : offset + length]
        offset += (length + 3) & ~3 or 4
    return found
