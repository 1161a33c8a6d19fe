# SPDX-License-Identifier: Apache-2.0
"""Frames written by hand, sent and seen in network namespaces of pods.

Sockets are opened by a thread that entered the namespace, and stay in it.
"""

from __future__ import annotations

import itertools
import socket
import struct
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from pathlib import Path

from criagent.kernel.namespaces import in_netns

IP, ARP, IP6 = 0x0800, 0x0806, 0x86DD
EVERYBODY = b"\xff" * 6
ALL_NODES = "ff02::1"
_LIMIT_S = 10.0
_marks = itertools.count(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """A pod, or the node on its bridge: hardware address, one address of each kind."""

    mac: bytes
    ip4: str
    ip6: str
    link_local: str


def ethernet(source: bytes, kind: int, payload: bytes, to: bytes = EVERYBODY) -> bytes:
    return to + source + struct.pack("!H", kind) + payload


def arp(operation: int, mac: bytes, ip4: str, target: str, hardware: int = 1) -> bytes:
    """RFC 826; padded to the least size of a frame."""
    head = struct.pack("!HHBBH", hardware, IP, 6, 4, operation)
    body = mac + socket.inet_aton(ip4) + bytes(6) + socket.inet_aton(target)
    return (head + body).ljust(46, b"\0")


def checksum(data: bytes) -> int:
    """RFC 1071."""
    data += bytes(len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total >> 16) + (total & 0xFFFF)
    return ~total & 0xFFFF


def ipv4(source: str, target: str, protocol: int, payload: bytes) -> bytes:
    """A header without options, and its payload."""
    addresses = socket.inet_aton(source) + socket.inet_aton(target)
    length = 20 + len(payload)
    head = struct.pack("!BBHHHBBH", 0x45, 0, length, 1, 0, 64, protocol, 0)
    summed = struct.pack("!H", checksum(head + addresses))
    return head[:10] + summed + addresses + payload


def udp(port_from: int, port_to: int, payload: bytes = b"spoofed") -> bytes:
    """Without a checksum, which IPv4 allows."""
    return struct.pack("!HHHH", port_from, port_to, 8 + len(payload), 0) + payload


def ipv6(source: str, target: str, following: int, payload: bytes, hops: int = 255) -> bytes:
    head = struct.pack("!IHBB", 6 << 28, len(payload), following, hops)
    return head + ip_address(source).packed + ip_address(target).packed + payload


def pseudo(source: str, target: str, length: int, following: int) -> bytes:
    addresses = ip_address(source).packed + ip_address(target).packed
    return addresses + struct.pack("!II", length, following)


def icmpv6(source: str, target: str, kind: int, body: bytes) -> bytes:
    """The message alone, with its checksum; `body` is what follows it."""
    message = struct.pack("!BBH", kind, 0, 0) + body
    value = checksum(pseudo(source, target, len(message), 58) + message)
    return message[:2] + struct.pack("!H", value) + message[4:]


def nd(source: str, kind: int, target: str, option: bytes = b"", to: str = ALL_NODES) -> bytes:
    """A neighbour solicitation (135) or advertisement (136, overriding) as an IPv6 packet."""
    flags = 0x20000000 if kind == 136 else 0
    body = struct.pack("!I", flags) + ip_address(target).packed + option
    return ipv6(source, to, 58, icmpv6(source, to, kind, body))


def hardware_option(kind: int, mac: bytes) -> bytes:
    """Source (1) or target (2) link-layer address, RFC 4861 section 4.6.1."""
    return bytes([kind, 1]) + mac


def advertisement(source: str, mac: bytes, prefix: str) -> bytes:
    """A router advertisement that makes `source` the default router and gives a prefix."""
    body = struct.pack("!BBHII", 64, 0x08, 1800, 0, 0) + hardware_option(1, mac)
    body += struct.pack("!BBBBIII", 3, 4, 64, 0xC0, 86400, 14400, 0) + ip_address(prefix).packed
    return ipv6(source, ALL_NODES, 58, icmpv6(source, ALL_NODES, 134, body))


def link_local(mac: bytes) -> str:
    made = bytes([mac[0] ^ 2]) + mac[1:3] + b"\xff\xfe" + mac[3:]
    return str(IPv6Address(b"\xfe\x80" + bytes(6) + made))


class Wire:
    """Raw frames of one interface in one network namespace; sees what came since it was made."""

    def __init__(self, netns: Path, interface: str = "eth0") -> None:
        self._socket = in_netns(netns, lambda: _open(interface))

    def send(self, frame: bytes) -> None:
        self._socket.send(frame)

    def next(self) -> bytes:
        """The next frame, which has to come."""
        return self._socket.recv(65536)

    def waiting(self) -> list[bytes]:
        """All frames that are here already."""
        found: list[bytes] = []
        self._socket.setblocking(False)
        try:
            while True:
                found.append(self._socket.recv(65536))
        except BlockingIOError:
            self._socket.settimeout(_LIMIT_S)
            return found

    def until(self, wanted: bytes) -> list[bytes]:
        """All frames up to the one that contains `wanted`, which has to come."""
        found: list[bytes] = []
        while True:
            frame = self.next()
            if wanted in frame:
                return found
            found.append(frame)

    def close(self) -> None:
        self._socket.close()


def _open(interface: str) -> socket.socket:
    made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))  # ETH_P_ALL
    made.settimeout(_LIMIT_S)
    made.bind((interface, 0))
    return made


def mark(host: Host) -> bytes:
    """A frame that `host` may send, unlike any other."""
    question = str(ip_address("10.88.128.0") + next(_marks))
    return ethernet(host.mac, ARP, arp(1, host.mac, host.ip4, question))


def arrives(sender: Wire, host: Host, receiver: Wire, frame: bytes) -> bool:
    """Whether `frame` comes through; frames keep their order, so that no time is waited for."""
    last = mark(host)
    sender.send(frame)
    sender.send(last)
    # The node may take VLAN tags and padding off, so that the payload is compared.
    payload = frame[18:] if frame[12:14] == b"\x81\x00" else frame[14:]
    return any(payload.rstrip(b"\0") in seen for seen in receiver.until(last.rstrip(b"\0")))
