# SPDX-License-Identifier: Apache-2.0
"""Sysctls: only of namespaces that are the pod's own, and never more than one value."""

from __future__ import annotations

import pytest

from criagent.base.errors import InvalidRequestError
from criagent.config.defaults.values import normalised
from criagent.model.common import IdMapping
from criagent.runtime.spec.sysctls import validate_sysctls, with_node_groups


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("net.ipv4.ip_local_port_range", "1024 65535"),
        ("net.ipv4.ip_local_port_range", "1024\t65535"),
        ("net.ipv4.ping_group_range", "0 2147483647"),
        ("net/ipv4/ip_forward", "1"),
        ("net/ipv4/conf/eth0.1/rp_filter", "0"),
        ("net.ipv4.conf.eth0/1.rp_filter", "0"),
        ("net.ipv4.tcp_congestion_control", "bbr"),
        ("kernel.shmmax", "68719476736"),
        ("kernel.shm_rmid_forced", "1"),
        ("kernel.msgmnb", "65536"),
        ("kernel.sem", "250 32000 100 128"),
        ("fs.mqueue.msg_max", "10"),
    ],
)
def test_namespaced_sysctls_are_taken(name: str, value: str) -> None:
    validate_sysctls({name: value}, own_network=True, own_ipc=True)


@pytest.mark.parametrize(
    "name",
    [
        "kernel.core_pattern",  # CVE-2022-0811
        "kernel/core_pattern",
        "kernel.hostname",
        "kernel.domainname",
        "kernel.semaphore",
        "kernel.shm",
        "kernel.panic",
        "vm.swappiness",
        "fs.file-max",
        "fs.mqueue",
        "fs.mqueue.a.b",
        "network.x",
        "net",
        "net.",
        ".net.x",
        "/net/x",
        "net..ipv4",
        "net//ipv4",
        "net/ipv4/../../kernel/core_pattern",
        "net.ipv4/../../../kernel/core_pattern",
        "net/./x",
        "net.ipv4.x\n",
        "net.ipv4.x=1+kernel.core_pattern",
        "net.ipv4.x y",
        "net.ipv4.x\0",
        "",
    ],
)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(InvalidRequestError):
        validate_sysctls({name: "1"}, own_network=True, own_ipc=True)


@pytest.mark.parametrize(
    "value",
    [
        "",
        "1+kernel.core_pattern=|/evil",  # CVE-2022-0811
        "1=2",
        "1\nkernel.core_pattern=x",
        "1\r",
        "1\0",
        "|/evil",
        "$(x)",
        "é",
        "1" * 4097,
    ],
)
def test_values_that_are_more_than_a_plain_line_are_refused(value: str) -> None:
    with pytest.raises(InvalidRequestError, match="not plain"):
        validate_sysctls({"net.ipv4.ip_forward": value}, own_network=True, own_ipc=True)


@pytest.mark.parametrize(
    ("name", "own_network", "own_ipc"),
    [
        ("net.ipv4.ip_forward", False, True),
        ("net/ipv4/ip_forward", False, True),
        ("kernel.shmmax", True, False),
        ("kernel.sem", True, False),
        ("fs.mqueue.msg_max", True, False),
    ],
)
def test_a_namespace_shared_with_the_node_is_not_the_pods_to_change(
    name: str, own_network: bool, own_ipc: bool
) -> None:
    with pytest.raises(InvalidRequestError, match="would change the node"):
        validate_sysctls({name: "1"}, own_network=own_network, own_ipc=own_ipc)
    validate_sysctls({name: "1"}, own_network=True, own_ipc=True)


def test_one_sysctl_in_both_spellings_is_refused() -> None:
    both = {"net.ipv4.ip_forward": "0", "net/ipv4/ip_forward": "1"}
    with pytest.raises(InvalidRequestError, match="twice"):
        validate_sysctls(both, own_network=True, own_ipc=True)


@pytest.mark.parametrize(
    ("name", "dotted"),
    [
        ("net.ipv4.ip_forward", "net.ipv4.ip_forward"),
        ("net/ipv4/ip_forward", "net.ipv4.ip_forward"),
        ("net/ipv4/conf/eth0.1/rp_filter", "net.ipv4.conf.eth0/1.rp_filter"),
        ("net.ipv4.conf.eth0/1.rp_filter", "net.ipv4.conf.eth0/1.rp_filter"),
    ],
)
def test_the_first_separator_decides_the_spelling(name: str, dotted: str) -> None:
    assert normalised(name) == dotted


GROUPS = IdMapping(host_id=131072, container_id=0, length=65536)


@pytest.mark.parametrize(
    ("asked", "written"),
    [
        ("0 2147483647", "131072 196607"),
        ("0 0", "131072 131072"),
        ("5\t10", "131077 131082"),
        ("65535 65536", "196607 196607"),
        ("1 0", "1 0"),
    ],
)
def test_groups_that_may_ping_are_those_of_the_pod(asked: str, written: str) -> None:
    sysctls = {"net.ipv4.ping_group_range": asked, "net.core.somaxconn": "1"}
    expected = {"net.ipv4.ping_group_range": written, "net.core.somaxconn": "1"}
    assert with_node_groups(sysctls, GROUPS) == expected


@pytest.mark.parametrize("asked", ["65536 70000", "0", "a b", "1 2 3", ""])
def test_groups_that_no_pod_has_are_refused(asked: str) -> None:
    with pytest.raises(InvalidRequestError, match="ping_group_range"):
        with_node_groups({"net.ipv4.ping_group_range": asked}, GROUPS)
