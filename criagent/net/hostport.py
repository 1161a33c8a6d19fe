"""The project's nftables table: masquerade of pod traffic and hostPorts.

Pure: texts of nft commands from facts. Rules that were run and are needed (docs/architecture.md):
one map per address family, looked up in prerouting and output for local destinations; masquerade of
redirected traffic that comes from 127.0.0.0/8 or goes back to the pod that it came from; a drop of
127.0.0.0/8 that arrives on any interface but lo, or pods could reach the host's loopback services.
Pods that reach one another by a redirection keep their addresses, whoever made it: kube-proxy's
Services count on that, and answers pass the gateway anyway.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from ipaddress import ip_address

from criagent.errors import AlreadyExistsError, InvalidRequestError
from criagent.model import Protocol, Sandbox

NAME = "criagent"
TABLE = f"inet {NAME}"

_MAPS = {
    4: ("hostports4", "hostports4_ip"),
    6: ("hostports6", "hostports6_ip"),
}
# Pairs of an address with itself, of pods that have host ports: nft cannot compare two fields.
_SELVES = {4: "selves4", 6: "selves6"}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Forward:
    """One port of the node that leads to a pod; `host_ip` "" stands for every address."""

    protocol: Protocol
    host_ip: str
    host_port: int
    address: str
    port: int

    @property
    def version(self) -> int:
        """4 or 6."""
        return ip_address(self.address).version

    @property
    def element(self) -> tuple[str, str]:
        """Map name and the element's text."""
        plain, by_address = _MAPS[self.version]
        l4 = self.protocol.name.lower()
        target = f"{self.address} . {self.port}"
        if self.host_ip:
            return by_address, f"{l4} . {self.host_ip} . {self.host_port} : {target}"
        return plain, f"{l4} . {self.host_port} : {target}"

    @property
    def itself(self) -> tuple[str, str]:
        """Set name and element that stand for the pod reaching itself."""
        return _SELVES[self.version], f"{self.address} . {self.address}"


def forwards(box: Sandbox, addresses: Sequence[str]) -> list[Forward]:
    """The forwards that the port mappings of `box` ask for.

    Raises InvalidRequestError for a bad port or host address.
    """
    found = []
    for mapping in box.spec.port_mappings:
        if not mapping.host_port:
            continue
        for port in (mapping.host_port, mapping.container_port):
            if not 0 < port < 65536:
                raise InvalidRequestError(f"port mapping has the invalid port {port}")
        host_ip, version = _host_ip(mapping.host_ip)
        for address in addresses:
            if version in {0, ip_address(address).version}:
                found.append(
                    Forward(
                        protocol=mapping.protocol,
                        host_ip=host_ip,
                        host_port=mapping.host_port,
                        address=address,
                        port=mapping.container_port,
                    )
                )
    return found


def _host_ip(text: str) -> tuple[str, int]:
    """Canonical address ("" for any) and IP version that it restricts the mapping to (0 = both)."""
    if not text:
        return "", 0
    try:
        if "%" in text:  # a zone may be any text, and this one becomes part of an nft command
            raise ValueError
        parsed = ip_address(text)
    except ValueError:
        raise InvalidRequestError(f"port mapping has the invalid host_ip {text[:80]!r}") from None
    return ("" if parsed.is_unspecified else str(parsed)), parsed.version


def check_conflicts(
    box_id: str, wanted: Iterable[Forward], taken: dict[str, list[Forward]]
) -> None:
    """Raise AlreadyExistsError when another sandbox has one of the host ports."""
    owners = {
        (f.version, f.protocol, f.host_port, ip): owner
        for owner, held in taken.items()
        if owner != box_id
        for f in held
        for ip in (f.host_ip,)
    }
    for forward in wanted:
        for (version, protocol, port, ip), owner in owners.items():
            same = (version, protocol, port) == (
                forward.version,
                forward.protocol,
                forward.host_port,
            )
            if same and (not ip or not forward.host_ip or ip == forward.host_ip):
                raise AlreadyExistsError(
                    f"host port {port}/{protocol.name} is in use by sandbox {owner}"
                )


def unclaimed(gone: Iterable[Forward], taken: dict[str, list[Forward]]) -> list[Forward]:
    """Those of `gone` whose element in the maps belongs to no forward in `taken`."""
    held = {_key(forward) for forwards_ in taken.values() for forward in forwards_}
    return [forward for forward in gone if _key(forward) not in held]


def _key(forward: Forward) -> tuple[str, str]:
    name, element = forward.element
    return name, element.partition(" : ")[0]


def add_commands(wanted: Sequence[Forward]) -> str:
    """Commands that add the forwards, in one transaction."""
    return "".join(
        f"add element {TABLE} {name} {{ {element} }}\n"
        for forward in wanted
        for name, element in (forward.element, forward.itself)
    )


def delete_commands(gone: Sequence[Forward]) -> str:
    """Commands that take the forwards away; nft destroys only what is there."""
    return "".join(
        f"destroy element {TABLE} {name} {{ {key} }}\n"
        for forward in gone
        for name, key in (_key(forward), forward.itself)
    )


# Commands that delete the table, be it there or not.
REMOVAL = f"add table {TABLE}\ndelete table {TABLE}\n"


def table(bridge: str, pods: Sequence[str], live: Iterable[Forward]) -> str:
    """Commands that replace the whole table; `pods` are their networks and single addresses."""
    sources4 = ", ".join(one for one in pods if ":" not in one)
    sources6 = ", ".join(one for one in pods if ":" in one)
    masquerade = ""
    if sources4:
        masquerade += (
            f"    ip saddr {{ {sources4} }} ip daddr != {{ {sources4}, 224.0.0.0/4 }} "
            "fib daddr type != local masquerade\n"
        )
    if sources6:
        masquerade += (
            f"    ip6 saddr {{ {sources6} }} ip6 daddr != {{ {sources6}, ff00::/8 }} "
            "fib daddr type != local masquerade\n"
        )
    lookups = (
        "    dnat ip to meta l4proto . ip daddr . th dport map @hostports4_ip\n"
        "    dnat ip6 to meta l4proto . ip6 daddr . th dport map @hostports6_ip\n"
        "    fib daddr type local dnat ip to meta l4proto . th dport map @hostports4\n"
        "    fib daddr type local dnat ip6 to meta l4proto . th dport map @hostports6\n"
    )
    return (
        f"{REMOVAL}table {TABLE} {{\n"
        "  map hostports4 { type inet_proto . inet_service : ipv4_addr . inet_service; }\n"
        "  map hostports6 { type inet_proto . inet_service : ipv6_addr . inet_service; }\n"
        "  map hostports4_ip { type inet_proto . ipv4_addr . inet_service : ipv4_addr . "
        "inet_service; }\n"
        "  map hostports6_ip { type inet_proto . ipv6_addr . inet_service : ipv6_addr . "
        "inet_service; }\n"
        "  set selves4 { type ipv4_addr . ipv4_addr; }\n"
        "  set selves6 { type ipv6_addr . ipv6_addr; }\n"
        "  chain loopback_guard {\n"
        "    type filter hook prerouting priority raw; policy accept;\n"
        f'    iifname "{bridge}" ip daddr 127.0.0.0/8 drop\n'
        "  }\n"
        # Told that another pod is on its link, a pod would answer past the redirections here; IPv6
        # has no switch for that as send_redirects is.
        "  chain no_redirects {\n"
        "    type filter hook output priority filter; policy accept;\n"
        f'    oifname "{bridge}" icmpv6 type nd-redirect drop\n'
        "  }\n"
        "  chain prerouting {\n"
        "    type nat hook prerouting priority dstnat; policy accept;\n"
        f"{lookups}"
        "  }\n"
        "  chain output {\n"
        "    type nat hook output priority dstnat; policy accept;\n"
        "    ip6 daddr ::1 return\n"
        f"{lookups}"
        "  }\n"
        "  chain postrouting {\n"
        "    type nat hook postrouting priority srcnat; policy accept;\n"
        f'    oifname "{bridge}" ct status dnat ip saddr 127.0.0.0/8 masquerade\n'
        "    ct status dnat ip saddr . ip daddr @selves4 masquerade\n"
        "    ct status dnat ip6 saddr . ip6 daddr @selves6 masquerade\n"
        f"{masquerade}"
        "  }\n"
        "}\n" + add_commands(list(live))
    )
