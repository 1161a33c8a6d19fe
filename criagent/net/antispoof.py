# SPDX-License-Identifier: Apache-2.0
"""Ports of the bridge, and what the pod behind each may send (antispoof.nft).

Pure. Hardware addresses follow from the sandbox id, so the rules exist before the link does, and no
pod can obtain another address, whatever it does to its own interface.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from ipaddress import IPv6Address, ip_address

TABLE = "bridge criagent"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """The host's end of a pod's veth pair, and the pod's own addresses.

    `mac` is the pod's, six bytes; `addresses` are without a prefix length.
    """

    interface: str
    mac: bytes
    addresses: tuple[str, ...]

    @property
    def elements(self) -> list[tuple[str, str]]:
        """Set names and their elements for this port."""
        port = f'"{self.interface}"'
        number = f"0x{self.mac.hex()}"
        found = [
            ("ports", port),
            ("macs", f"{port} . {self.mac.hex(':')}"),
            ("nd_macs", f"{port} . {number}"),
        ]
        for address in (*map(ip_address, self.addresses), link_local(self.mac)):
            if isinstance(address, IPv6Address):
                found.append(("addresses6", f"{port} . {address}"))
                found.append(("nd_addresses", f"{port} . 0x{int(address):032x}"))
            else:
                found.append(("addresses4", f"{port} . {address}"))
        return found


def pod_mac(sandbox_id: str) -> bytes:
    """The hardware address of a pod's eth0: unicast, locally administered (IEEE 802)."""
    return b"\x02" + bytes.fromhex(sandbox_id[:10])


def host_mac(sandbox_id: str) -> bytes:
    """The hardware address of the host's end."""
    return b"\xfe" + bytes.fromhex(sandbox_id[:10])


def link_local(mac: bytes) -> IPv6Address:
    """The link-local address that the kernel derives from `mac` (RFC 4291, appendix A)."""
    interface = bytes([mac[0] ^ 2]) + mac[1:3] + b"\xff\xfe" + mac[3:]
    return IPv6Address(b"\xfe\x80" + bytes(6) + interface)


def add_commands(ports: Iterable[Port]) -> str:
    """Commands that allow these ports to send: one for each set, however many ports there are."""
    sets: dict[str, list[str]] = {}
    for port in ports:
        for name, element in port.elements:
            sets.setdefault(name, []).append(element)
    return "".join(
        f"add element {TABLE} {name} {{ {', '.join(elements)} }}\n"
        for name, elements in sets.items()
    )


def delete_commands(ports: Sequence[Port]) -> str:
    """Commands that remove these ports; unknown ones are no error.

    nftables 1.0.6 has no `destroy`, but an element that was just added can be deleted.
    """
    added = add_commands(ports)
    return added + added.replace("add element", "delete element")
