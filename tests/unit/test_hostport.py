# SPDX-License-Identifier: Apache-2.0
"""hostPorts as elements of the nftables maps."""

from __future__ import annotations

import pytest

from criagent.base.errors import AlreadyExistsError, InvalidRequestError
from criagent.model.common import Protocol
from criagent.model.sandbox import PortMapping, Sandbox, SandboxId, SandboxMetadata, SandboxSpec
from criagent.net import hostport
from criagent.net.hostport import Forward

BOTH = ("10.88.0.5", "fd00:10:88::5")


def sandbox(*mappings: PortMapping) -> Sandbox:
    metadata = SandboxMetadata(name="pod", uid="u", namespace="ns")
    return Sandbox(
        id=SandboxId("a" * 64),
        spec=SandboxSpec(metadata=metadata, port_mappings=mappings),
        created_at_ns=1,
        boot_id="b",
    )


def port(
    host_port: int = 8080,
    container_port: int = 80,
    host_ip: str = "",
    protocol: Protocol = Protocol.TCP,
) -> PortMapping:
    return PortMapping(
        protocol=protocol, container_port=container_port, host_port=host_port, host_ip=host_ip
    )


def elements(*mappings: PortMapping) -> list[tuple[str, str]]:
    return [forward.element for forward in hostport.forwards(sandbox(*mappings), BOTH)]


def forward(host_port: int = 8080, host_ip: str = "", address: str = BOTH[0]) -> Forward:
    return Forward(
        protocol=Protocol.TCP, host_ip=host_ip, host_port=host_port, address=address, port=80
    )


def test_a_port_on_every_address_leads_to_the_pod_over_both_families() -> None:
    assert elements(port()) == [
        ("hostports4", "tcp . 8080 : 10.88.0.5 . 80"),
        ("hostports6", "tcp . 8080 : fd00:10:88::5 . 80"),
    ]


@pytest.mark.parametrize(
    ("host_ip", "expected"),
    [
        ("192.0.2.1", ("hostports4_ip", "tcp . 192.0.2.1 . 8080 : 10.88.0.5 . 80")),
        ("2001:DB8:0::1", ("hostports6_ip", "tcp . 2001:db8::1 . 8080 : fd00:10:88::5 . 80")),
        ("0.0.0.0", ("hostports4", "tcp . 8080 : 10.88.0.5 . 80")),
        ("::", ("hostports6", "tcp . 8080 : fd00:10:88::5 . 80")),
    ],
)
def test_a_host_address_restricts_the_family(host_ip: str, expected: tuple[str, str]) -> None:
    assert elements(port(host_ip=host_ip)) == [expected]


def test_the_protocol_is_part_of_the_key() -> None:
    udp = elements(port(53, 53, protocol=Protocol.UDP), port(53, 53, protocol=Protocol.SCTP))
    assert [text.partition(" : ")[0] for _, text in udp] == ["udp . 53"] * 2 + ["sctp . 53"] * 2


def test_a_mapping_without_a_host_port_is_none() -> None:
    assert elements(port(host_port=0)) == []


@pytest.mark.parametrize("bad", [port(65536), port(-1), port(8080, 0), port(8080, 70000)])
def test_a_port_out_of_range_is_refused(bad: PortMapping) -> None:
    with pytest.raises(InvalidRequestError, match="invalid port"):
        elements(bad)


@pytest.mark.parametrize(
    "text",
    ["localhost", "1.2.3", "::1 }", "1.2.3.4; flush ruleset", "1/8", "fe80::1%x } ; flush ruleset"],
)
def test_a_host_address_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequestError, match="invalid host_ip"):
        elements(port(host_ip=text))


@pytest.mark.parametrize(
    ("mine", "other", "clash"),
    [
        (forward(), forward(), True),
        (forward(host_ip="192.0.2.1"), forward(), True),
        (forward(), forward(host_ip="192.0.2.1"), True),
        (forward(host_ip="192.0.2.1"), forward(host_ip="192.0.2.2"), False),
        (forward(8081), forward(8080), False),
        (forward(), forward(address=BOTH[1]), False),
    ],
)
def test_a_taken_host_port_is_refused(mine: Forward, other: Forward, clash: bool) -> None:
    taken = {"other": [other]}
    if clash:
        with pytest.raises(
            AlreadyExistsError, match="host port 8080/TCP is in use by sandbox other"
        ):
            hostport.check_conflicts("mine", [mine], taken)
    else:
        hostport.check_conflicts("mine", [mine], taken)
    hostport.check_conflicts("other", [mine], taken)  # its own is no conflict


def test_one_host_port_leads_to_one_port() -> None:
    twice = hostport.forwards(sandbox(port(), port()), BOTH)
    hostport.check_conflicts("mine", twice, {})  # the same mapping again says nothing new
    apart = hostport.forwards(sandbox(port(), port(protocol=Protocol.UDP, container_port=81)), BOTH)
    hostport.check_conflicts("mine", apart, {})
    both = hostport.forwards(sandbox(port(), port(container_port=81)), BOTH)
    with pytest.raises(InvalidRequestError, match=r"8080/TCP is mapped .* ports, 80 and 81"):
        hostport.check_conflicts("mine", both, {})


def test_only_ports_that_nobody_else_has_are_taken_away() -> None:
    taken = {"other": [forward(address="10.88.0.9")]}
    gone = [forward(), forward(8081)]
    assert hostport.unclaimed(gone, taken) == [forward(8081)]
    # Added first, so that one that is not there is no failure.
    assert hostport.delete_commands(hostport.unclaimed(gone, taken)) == (
        "add element inet criagent hostports4 { tcp . 8081 : 10.88.0.5 . 80 }\n"
        "delete element inet criagent hostports4 { tcp . 8081 }\n"
        "add element inet criagent selves4 { 10.88.0.5 . 10.88.0.5 }\n"
        "delete element inet criagent selves4 { 10.88.0.5 . 10.88.0.5 }\n"
    )
