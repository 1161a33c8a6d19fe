# SPDX-License-Identifier: Apache-2.0
"""Addresses and words of CNI plugins' output."""

from __future__ import annotations

import json
from typing import Any

import pytest

from criagent.base.errors import AgentError
from criagent.net.cni import result as cni_result

INTERFACES = [
    {"name": "cni0"},
    {"name": "eth0", "sandbox": "/run/netns/x"},
    {"name": "net1", "sandbox": "/run/netns/x"},
]


def addresses(result: dict[str, Any]) -> tuple[str, ...]:
    return cni_result.addresses(result, "bridge", "eth0")


def test_addresses_lose_their_prefix_and_keep_their_order() -> None:
    ips = [{"address": "10.1.0.2/16"}, {"address": "fd00:0::2/64", "gateway": "fd00::1"}]
    assert addresses({"ips": ips}) == ("10.1.0.2", "fd00::2")


def test_addresses_of_the_pods_interface_come_alone() -> None:
    ips = [
        {"address": "10.1.0.1/16", "interface": 0},
        {"address": "10.9.0.2/16", "interface": 2},
        {"address": "10.1.0.2/16", "interface": 1},
    ]
    assert addresses({"interfaces": INTERFACES, "ips": ips}) == ("10.1.0.2",)


def test_another_interface_in_the_pod_counts_when_eth0_has_none() -> None:
    ips = [{"address": "10.9.0.2/16", "interface": 2}, {"address": "10.1.0.1/16", "interface": 0}]
    assert addresses({"interfaces": INTERFACES, "ips": ips}) == ("10.9.0.2",)


@pytest.mark.parametrize("eth0", [{"name": "eth0"}, {"name": "eth0", "sandbox": ""}])
def test_the_pods_interface_counts_without_a_sandbox(eth0: dict[str, str]) -> None:
    ips = [{"address": "10.1.0.1/16", "interface": 0}, {"address": "10.1.0.2/16", "interface": 1}]
    result = {"interfaces": [{"name": "cni0"}, eth0], "ips": ips}
    assert addresses(result) == ("10.1.0.2",)


def test_results_of_the_first_versions_have_addresses() -> None:
    assert addresses({"ip4": {"ip": "10.1.0.2/16"}}) == ("10.1.0.2",)
    assert addresses({"ip6": {"ip": "fd00::2/64"}, "ips": None}) == ("fd00::2",)
    both = {"ip6": {"ip": "fd00::2/64"}, "ip4": {"ip": "10.1.0.2/16", "routes": None}}
    assert addresses(both) == ("10.1.0.2", "fd00::2")
    with pytest.raises(AgentError, match="malformed address"):
        addresses({"ip4": {"ip": "10.1.0.2.3"}})
    with pytest.raises(AgentError, match="no ips"):
        addresses({"ip4": 17})


ROUTES = [{"dst": "0.0.0.0/0", "gw": "10.1.0.1"}, {"dst": "::/0"}]
NEW = {
    "cniVersion": "1.0.0",
    "interfaces": INTERFACES,
    "ips": [
        {"address": "10.1.0.2/16", "gateway": "10.1.0.1", "interface": 1},
        {"address": "10.1.0.3/16", "interface": 1},
        {"address": "fd00::2/64", "interface": 1},
    ],
    "routes": ROUTES,
    "dns": {"nameservers": ["10.1.0.1"]},
}


def test_a_result_goes_back_to_the_first_versions() -> None:
    assert cni_result.converted(NEW, "0.2.0") == {
        "cniVersion": "0.2.0",
        "ip4": {"ip": "10.1.0.2/16", "gateway": "10.1.0.1", "routes": ROUTES[:1]},
        "ip6": {"ip": "fd00::2/64", "routes": ROUTES[1:]},
        "dns": {"nameservers": ["10.1.0.1"]},
    }


def test_a_result_of_the_first_versions_is_brought_forward() -> None:
    old = cni_result.converted(NEW, "0.1.0")
    assert cni_result.converted(old, "0.4.0") == {
        "cniVersion": "0.4.0",
        "ips": [
            {"address": "10.1.0.2/16", "gateway": "10.1.0.1", "version": "4"},
            {"address": "fd00::2/64", "version": "6"},
        ],
        "routes": ROUTES,
        "dns": {"nameservers": ["10.1.0.1"]},
    }


def test_a_result_of_its_own_version_stays_what_it_is() -> None:
    assert cni_result.converted(NEW, "1.0.0") == NEW
    assert cni_result.converted(cni_result.converted(NEW, "0.3.1"), "1.0.0") == NEW


@pytest.mark.parametrize(
    "broken",
    [
        {},
        {"ips": 7},
        {"ips": [None, 7, {}]},
        {"ip4": []},
        {"ips": [], "routes": 7},
        {"ips": [{"address": "10.1.0.2/16"}], "routes": 7},
        {"ips": [{"address": "10.1.0.2/16"}], "routes": [7, {"dst": 7}]},
        {"ip4": {"ip": "10.1.0.2/16", "routes": 7}},
        {"ip4": {"ip": 7, "gateway": [], "routes": {"dst": "::/0"}}},
    ],
)
@pytest.mark.parametrize("version", ["0.2.0", "0.4.0", "1.0.0"])
def test_what_is_malformed_is_left_to_those_who_read_it(
    broken: dict[str, Any], version: str
) -> None:
    assert cni_result.converted(broken, version)["cniVersion"] == version


@pytest.mark.parametrize(
    ("ips", "words"),
    [
        (None, "no ips"),
        ([], "no ips"),
        ({"address": "10.1.0.2/16"}, "no ips"),
        ([{"address": "10.1.0.2/16"}] * 65, "65 ips"),
        ([{}], "malformed address 'None'"),
        (["10.1.0.2/16"], "malformed address"),
        ([{"address": 17}], "malformed address '17'"),
        ([{"address": "10.1.0.2/33"}], "malformed address"),
        ([{"address": "10.1.0.2/16; nameserver"}], "malformed address"),
        ([{"address": "fe80::1%eth0/64"}], "malformed address"),
        ([{"address": "\u0661.1.1.1/8"}], "malformed address"),
        ([{"address": "x" * 1_000_000}], "malformed address 'x{80}'"),
        ([{"address": "10.1.0.2/16", "interface": 3}], "interface '3', which"),
        ([{"address": "10.1.0.2/16", "interface": -1}], "interface '-1', which"),
        ([{"address": "10.1.0.2/16", "interface": True}], "interface 'True', which"),
        ([{"address": "10.1.0.2/16", "interface": "1"}], "which it does not list"),
        ([{"address": "10.1.0.2/16", "interface": 0}], "no ips on an interface of the pod"),
    ],
)
def test_malformed_ips_are_refused_by_the_plugins_name(ips: object, words: str) -> None:
    with pytest.raises(AgentError, match=f'CNI plugin "bridge".*{words}'):
        addresses({"interfaces": INTERFACES, "ips": ips})


@pytest.mark.parametrize("interfaces", [None, {}, "eth0", [7]])
def test_malformed_interfaces_are_refused(interfaces: object) -> None:
    with pytest.raises(AgentError, match='CNI plugin "bridge"'):
        addresses({"interfaces": interfaces, "ips": [{"address": "10.1.0.2/16", "interface": 0}]})


@pytest.mark.parametrize("output", [b"", b"no", b"\xff\xfe", b'{"a": ', b"[" * 100_000])
def test_output_that_is_no_json_is_refused(output: bytes) -> None:
    with pytest.raises(AgentError, match='CNI plugin "bridge" printed invalid JSON'):
        cni_result.parse_result(output, "bridge")


@pytest.mark.parametrize("output", [b"[]", b"null", b"17", b'"text"'])
def test_output_that_is_no_object_is_refused(output: bytes) -> None:
    with pytest.raises(AgentError, match="printed something other than a JSON object"):
        cni_result.parse_result(output, "bridge")


@pytest.mark.parametrize(
    ("output", "errors", "expected"),
    [
        (b'{"code": 11, "msg": "no ip", "details": "pool full"}', b"", "no ip pool full"),
        (b'{"code": 11, "msg": "no ip"}', b"noise", "no ip"),
        (b"", b" panic: \xff \n", "panic: \ufffd"),
        (b"[1]", b"", "failed with no output"),
        (b"", b"", "failed with no output"),
    ],
)
def test_a_failure_is_told_in_the_plugins_words(
    output: bytes, errors: bytes, expected: str
) -> None:
    assert cni_result.failure_text(output, errors) == expected


def test_long_words_are_cut() -> None:
    assert len(cni_result.failure_text(json.dumps({"msg": "x" * 100_000}).encode(), b"")) == 1000
