# SPDX-License-Identifier: Apache-2.0
"""Texts of the nftables tables; tests/e2e/test_rules.py has nft and the kernel read them."""

from __future__ import annotations

from ipaddress import IPv6Address

import pytest

from criagent.model.common import Protocol
from criagent.net import antispoof, rules
from criagent.net.antispoof import Port
from criagent.net.hostport import Forward

SANDBOX = "0123456789abcdef" * 4
FORWARD = Forward(protocol=Protocol.TCP, host_ip="", host_port=8080, address="10.88.0.5", port=80)
PORT = Port(
    interface="cri0123456789a",
    mac=bytes.fromhex("020123456789"),
    addresses=("10.88.0.5", "fd00:10:88::5"),
)


def contents(*pods: str) -> rules.Contents:
    return rules.Contents(bridge="cri0", pods=pods, forwards=[FORWARD], ports=[PORT])


def test_both_tables_are_replaced_whole() -> None:
    text = rules.replacement(contents("10.88.0.0/16", "fd00:10:88::/64"), anti_spoofing=True)
    for table in ("inet criagent", "bridge criagent"):
        assert f"add table {table}\ndelete table {table}\n" in text
    lines = text.splitlines()
    assert "add element inet criagent networks4 { 10.88.0.0/16 }" in lines
    assert "add element inet criagent networks6 { fd00:10:88::/64 }" in lines
    assert "add element inet criagent hostports4 { tcp . 8080 : 10.88.0.5 . 80 }" in lines
    assert 'add element bridge criagent ports { "cri0123456789a" }' in lines


def test_many_ports_are_one_command_for_each_set() -> None:
    ports = [
        antispoof.Port(
            interface=f"cri{n}", mac=bytes((2, 0, 0, 0, 0, n)), addresses=(f"10.88.0.{n}",)
        )
        for n in range(1, 4)
    ]
    lines = antispoof.add_commands(ports).splitlines()
    names = {name for port in ports for name, _ in port.elements}
    assert len(lines) == len(names)
    for port in ports:
        for name, element in port.elements:
            (line,) = [one for one in lines if f" {name} {{ " in one]
            assert f" {element}," in line or f" {element} }}" in line
    assert antispoof.add_commands([]) == ""


def test_without_anti_spoofing_the_second_table_is_not_mentioned() -> None:
    text = rules.replacement(contents("10.88.0.0/16"), anti_spoofing=False)
    assert "bridge criagent" not in text


@pytest.mark.parametrize("cidr", ["10.88.0.0/16", "fd00:10:88::/64"])
def test_the_tables_of_one_family_name_no_empty_set(cidr: str) -> None:
    assert "{  }" not in rules.replacement(contents(cidr), anti_spoofing=True)


def test_only_our_tables_are_ours() -> None:
    listing = "table ip nat\ntable bridge criagent\ntable inet criagent2\ntable ip criagent\n"
    assert rules.present(listing) == ["bridge criagent"]
    assert rules.present("") == []


def test_a_port_may_send_from_what_its_pod_was_given() -> None:
    port = '"cri0123456789a"'
    assert sorted(PORT.elements) == [
        ("addresses4", f"{port} . 10.88.0.5"),
        ("addresses6", f"{port} . fd00:10:88::5"),
        ("addresses6", f"{port} . fe80::1:23ff:fe45:6789"),
        ("macs", f"{port} . 02:01:23:45:67:89"),
        ("nd_addresses", f"{port} . 0xfd000010008800000000000000000005"),
        ("nd_addresses", f"{port} . 0xfe80000000000000000123fffe456789"),
        ("nd_macs", f"{port} . 0x020123456789"),
        ("ports", port),
    ]


def test_an_ipv4_pod_keeps_its_link_local_address() -> None:
    only = Port(interface="cri1", mac=PORT.mac, addresses=("10.88.0.5",))
    assert [name for name, _ in only.elements if "6" in name] == ["addresses6"]


def test_hardware_addresses_follow_from_the_sandbox() -> None:
    pod, host = antispoof.pod_mac(SANDBOX), antispoof.host_mac(SANDBOX)
    assert (pod.hex(":"), host.hex(":")) == ("02:01:23:45:67:89", "fe:01:23:45:67:89")
    for mac in (pod, host):
        assert mac[0] & 1 == 0  # unicast
        assert mac[0] & 2 == 2  # locally administered


def test_the_link_local_address_is_the_kernels() -> None:
    # RFC 4291, appendix A
    assert antispoof.link_local(bytes.fromhex("34567800ccdd")) == IPv6Address(
        "fe80::3656:78ff:fe00:ccdd"
    )


def test_a_port_that_is_not_known_can_be_forgotten() -> None:
    lines = antispoof.delete_commands([PORT]).splitlines()
    assert [line.split()[0] for line in lines] == ["add"] * 6 + ["delete"] * 6
