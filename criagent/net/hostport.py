# SPDX-License-Identifier: Apache-2.0
"""hostPorts as elements of the maps in hostports.nft. Pure: texts of nft commands from facts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from ipaddress import ip_address

from criagent.base.errors import AlreadyExistsError, InvalidRequestError
from criagent.model.common import Protocol
from criagent.model.sandbox import Sandbox

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
    """One port of the node that leads to a pod; `host_ip` "" means every address."""

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
        """Set name and element for a pod that reaches itself."""
        return _SELVES[self.version], f"{self.address} . {self.address}"


def forwards(sandbox: Sandbox, addresses: Sequence[str]) -> list[Forward]:
    """The forwards that the port mappings of `sandbox` request.

    Raises InvalidRequestError for an invalid port or host address.
    """
    found = []
    for mapping in sandbox.spec.port_mappings:
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
    """Canonical address ("" for any) and the IP version that it restricts the mapping to (0 =
    both).
    """
    if not text:
        return "", 0
    try:
        if "%" in text:  # a zone may be any text, and this text becomes part of an nft command
            raise ValueError
        parsed = ip_address(text)
    except ValueError:
        raise InvalidRequestError(f"port mapping has the invalid host_ip {text[:80]!r}") from None
    return ("" if parsed.is_unspecified else str(parsed)), parsed.version


def check_conflicts(
    sandbox_id: str, wanted: Sequence[Forward], taken: dict[str, list[Forward]]
) -> None:
    """Raise AlreadyExistsError when another sandbox has one of the host ports.

    Raises InvalidRequestError when `wanted` leads one of them to two ports.
    """
    targets: dict[tuple[str, str], Forward] = {}
    for forward in wanted:
        known = targets.setdefault(_key(forward), forward)
        if known.port != forward.port:
            raise InvalidRequestError(
                f"host port {forward.host_port}/{forward.protocol.name} is mapped to two "
                f"container ports, {known.port} and {forward.port}; map it to one"
            )
    owners = {
        (f.version, f.protocol, f.host_port, ip): owner
        for owner, held in taken.items()
        if owner != sandbox_id
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
    """Forwards in `gone` whose map element belongs to no forward in `taken`."""
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
    """Commands that remove the forwards; missing ones are no error.

    nftables 1.0.6 has no `destroy`, but an element that was just added can be deleted.
    """
    return "".join(
        f"add element {TABLE} {name} {{ {element} }}\n"
        f"delete element {TABLE} {name} {{ {element.partition(' : ')[0]} }}\n"
        for forward in gone
        for name, element in (forward.element, forward.itself)
    )
