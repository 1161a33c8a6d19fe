# SPDX-License-Identifier: Apache-2.0
"""The CNI network with plugins made of shell scripts: calls, failures, what a bad one may do."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from criagent.base.errors import AgentError, CorruptError, InvalidRequestError
from criagent.model.common import Protocol
from criagent.model.sandbox import (
    DnsConfig,
    PortMapping,
    SandboxId,
)
from criagent.net.pod_network import PodNetwork
from tests.support.cni_node import NETNS, RESULT, Node, attached, sandbox


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    made = Node(tmp_path)
    yield made
    made.executor.shutdown()
    made.database.close()


def test_it_is_a_pod_network(node: Node) -> None:
    network: PodNetwork = node.network()
    assert network.backend == "cni"


async def test_add_hands_each_result_to_the_next_plugin(node: Node) -> None:
    node.plugin("first")
    second = RESULT.replace("10.1.0.2", "10.1.0.3")
    node.plugin("second", add=f"echo '{second}'")
    node.configure({"type": "first", "mtu": 1400}, {"type": "second"})
    container = await attached(node.network(), sandbox())
    assert container.addresses == ("10.1.0.3",)
    assert node.order == ["ADD first", "ADD second"]
    assert node.request("ADD-first") == {
        "type": "first",
        "mtu": 1400,
        "name": "net",
        "cniVersion": "1.0.0",
    }
    assert node.request("ADD-second")["prevResult"] == json.loads(RESULT)


async def test_plugins_learn_the_pod_and_nothing_of_the_daemon(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/secret")
    node.plugin("first")
    node.configure({"type": "first"})
    await node.network().attach(sandbox(), NETNS)
    seen = node.environment("ADD-first")
    assert seen["CNI_ARGS"] == (
        "IgnoreUnknown=1;K8S_POD_NAMESPACE=prod;K8S_POD_NAME=web;"
        f"K8S_POD_INFRA_CONTAINER_ID={'c' * 64};K8S_POD_UID=u-1"
    )
    assert seen["CNI_CONTAINERID"] == "c" * 64
    assert seen["CNI_IFNAME"] == "eth0"
    assert seen["CNI_NETNS"] == str(NETNS)
    assert seen["CNI_PATH"] == str(node.bin)
    assert "NOTIFY_SOCKET" not in seen


async def test_only_declared_capabilities_are_passed(node: Node) -> None:
    for kind in ("none", "ports", "names"):
        node.plugin(kind)
    node.configure(
        {"type": "none"},
        {"type": "ports", "capabilities": {"portMappings": True, "dns": False, "ips": True}},
        {"type": "names", "capabilities": {"dns": True}},
    )
    mappings = (
        PortMapping(protocol=Protocol.UDP, container_port=53, host_port=5353, host_ip="192.0.2.1"),
        PortMapping(protocol=Protocol.TCP, container_port=80, host_port=0),
    )
    dns = DnsConfig(servers=("10.96.0.10",), searches=("a.b",), options=("ndots:5",))
    network = node.network()
    container = await attached(network, sandbox(port_mappings=mappings, dns=dns))
    await network.detach(container, NETNS)
    ports = [{"hostPort": 5353, "containerPort": 53, "protocol": "udp", "hostIP": "192.0.2.1"}]
    for verb in ("ADD", "DEL"):
        assert "runtimeConfig" not in node.request(f"{verb}-none")
        request = node.request(f"{verb}-ports")
        assert request["runtimeConfig"] == {"portMappings": ports}
        assert "capabilities" not in request
        assert node.request(f"{verb}-names")["runtimeConfig"] == {
            "dns": {"servers": ["10.96.0.10"], "searches": ["a.b"], "options": ["ndots:5"]}
        }


@pytest.mark.parametrize(
    ("annotations", "expected"),
    [
        ({"kubernetes.io/ingress-bandwidth": "10M"}, {"ingressRate": 10_000_000}),
        ({"kubernetes.io/egress-bandwidth": "1.5Mi"}, {"egressRate": 1_572_864}),
        (
            {"kubernetes.io/ingress-bandwidth": "1k", "kubernetes.io/egress-bandwidth": "1P"},
            {"ingressRate": 1000, "egressRate": 10**15},
        ),
    ],
)
async def test_bandwidth_annotations_reach_plugins_that_limit_it(
    node: Node, annotations: dict[str, str], expected: dict[str, int]
) -> None:
    node.plugin("none")
    node.plugin("limits")
    node.configure({"type": "none"}, {"type": "limits", "capabilities": {"bandwidth": True}})
    network = node.network()
    await network.detach(await attached(network, sandbox(annotations=annotations)), NETNS)
    bursts = {key.replace("Rate", "Burst"): 4294967295 for key in expected}
    for verb in ("ADD", "DEL"):
        assert "runtimeConfig" not in node.request(f"{verb}-none")
        config = node.request(f"{verb}-limits")["runtimeConfig"]
        assert config == {"bandwidth": expected | bursts}


@pytest.mark.parametrize("capable", [True, False])
async def test_bandwidth_that_is_none_fails_the_pod_by_the_annotation(
    node: Node, capable: bool
) -> None:
    node.plugin("limits")
    node.configure({"type": "limits", "capabilities": {"bandwidth": capable}})
    annotations = {"kubernetes.io/egress-bandwidth": "lots"}
    network = node.network()
    with pytest.raises(InvalidRequestError, match=r"kubernetes\.io/egress-bandwidth: 'lots'"):
        await network.attach(sandbox(annotations=annotations), NETNS)
    assert node.order == []
    # Such a pod of a former version is taken down nevertheless.
    await network.detach(sandbox(annotations=annotations), NETNS)
    assert node.order == ["DEL limits"]


async def test_the_pods_cgroup_and_the_nodes_range_reach_plugins(node: Node) -> None:
    node.plugin("first")
    capabilities = {"cgroupPath": True, "ipRanges": True}
    node.configure({"type": "first", "capabilities": capabilities})
    network = node.network()
    await network.attach(sandbox(cgroup_parent="/kubepods/pod1"), NETNS)
    given = {"cgroupPath": "/kubepods/pod1"}
    assert node.request("ADD-first")["runtimeConfig"] == given
    await network.set_pod_cidrs(["10.5.0.0/24", "fd00:5:0::/64"])
    ranges = [[{"subnet": "10.5.0.0/24"}], [{"subnet": "fd00:5::/64"}]]
    for again in (network, node.network()):  # another life of the daemon knows it, too
        await again.attach(sandbox(cgroup_parent="/kubepods/pod1"), NETNS)
        assert node.request("ADD-first")["runtimeConfig"] == given | {"ipRanges": ranges}
    with pytest.raises(InvalidRequestError, match=r"'10\.5\.0\.0/33' is not a network"):
        await network.set_pod_cidrs(["10.5.0.0/33"])


OLD_RESULT = {
    "cniVersion": "0.2.0",
    "ip4": {"ip": "10.1.0.2/16", "gateway": "10.1.0.1", "routes": [{"dst": "0.0.0.0/0"}]},
    "ip6": {"ip": "fd00::2/64"},
    "dns": {},
}


@pytest.mark.parametrize(
    "version", [None, "", "0.1.0", "0.2.0", "0.3.0", "0.4.0", "1.0.0", "1.1.0"]
)
@pytest.mark.parametrize("result", [OLD_RESULT, json.loads(RESULT)])
async def test_every_version_takes_results_of_every_other(
    node: Node, version: str | None, result: dict[str, Any]
) -> None:
    """The next plugin and DEL see them in their own version, as its library insists."""
    for kind in ("first", "second"):
        node.plugin(kind, add=f"echo '{json.dumps(result)}'")
    node.configure({"type": "first"}, {"type": "second"}, cniVersion=version or "")
    if version is None:
        file = node.conf / "10.conflist"
        document = json.loads(file.read_text())
        del document["cniVersion"]
        file.write_text(json.dumps(document))
    network = node.network()
    container = await attached(network, sandbox())
    await network.detach(container, NETNS)
    assert container.addresses == (("10.1.0.2", "fd00::2") if "ip4" in result else ("10.1.0.2",))
    used = node.request("ADD-second")["cniVersion"]
    assert used == (version or "0.3.1")
    previous = node.request("ADD-second")["prevResult"]
    assert previous["cniVersion"] == used
    if used < "0.3.0":
        assert previous["ip4"]["ip"] == "10.1.0.2/16"
        assert "ips" not in previous
    else:
        assert previous["ips"][0]["address"] == "10.1.0.2/16"
        assert previous["ips"][0].get("version") == ("4" if used < "1.0.0" else None)
        assert "ip4" not in previous
    deleted = node.request("DEL-first")
    assert deleted.get("prevResult") == (previous if used >= "0.4.0" else None)


async def test_del_goes_backwards_with_what_add_used(node: Node) -> None:
    node.plugin("first")
    node.plugin("second")
    node.configure({"type": "first", "mtu": 1400}, {"type": "second"})
    container = await attached(node.network(), sandbox())
    node.configure({"type": "second"}, name="00-other.conflist")
    await node.network().detach(container, None)
    assert node.order[2:] == ["DEL second", "DEL first"]
    request = node.request("DEL-first")
    assert (request["mtu"], request["prevResult"]) == (1400, json.loads(RESULT))
    assert node.environment("DEL-first")["CNI_NETNS"] == ""
    assert not node.cache.exists()


async def test_del_of_old_versions_has_no_result(node: Node) -> None:
    node.plugin("first")
    node.configure({"type": "first"}, cniVersion="0.3.1")
    network = node.network()
    await network.detach(await attached(network, sandbox()), NETNS)
    assert "prevResult" not in node.request("DEL-first")


async def test_del_of_a_namespace_that_is_gone_names_none(node: Node, tmp_path: Path) -> None:
    node.plugin("first")
    node.configure({"type": "first"})
    network = node.network()
    left = tmp_path / "net"
    left.touch()  # the file below a pin
    await network.detach(await attached(network, sandbox()), left)
    assert node.environment("DEL-first")["CNI_NETNS"] == ""


async def test_del_after_a_crash_knows_the_network_and_the_partial_result(node: Node) -> None:
    node.plugin("first")
    node.plugin("second", add='echo \'{"msg": "pool full"}\'; exit 1')
    node.configure({"type": "first"}, {"type": "second"})
    with pytest.raises(AgentError, match='CNI plugin "second" ADD: pool full'):
        await node.network().attach(sandbox(), NETNS)
    (node.conf / "10.conflist").unlink()
    await node.network().detach(
        sandbox(), NETNS
    )  # another life of the daemon, no result in the row
    assert node.order[2:] == ["DEL second", "DEL first"]
    assert node.request("DEL-first")["prevResult"] == json.loads(RESULT)


async def test_del_without_configuration_or_attachment_is_fine(node: Node) -> None:
    await node.network().detach(sandbox(), None)
    node.plugin("first")
    node.configure({"type": "first"})
    await node.network().detach(sandbox(), None)
    assert node.order == ["DEL first"]


async def test_a_failing_del_stops_no_other_and_is_told(node: Node) -> None:
    node.plugin("first")
    node.plugin("second", other="echo boom >&2; exit 1")
    node.configure({"type": "first"}, {"type": "second"})
    network = node.network()
    container = await attached(network, sandbox())
    with pytest.raises(AgentError, match='CNI plugin "second" DEL: boom'):
        await network.detach(container, NETNS)
    assert node.order[2:] == ["DEL second", "DEL first"]
    node.plugin("second")
    await network.detach(container, NETNS)


async def test_a_damaged_row_is_told(node: Node) -> None:
    with pytest.raises(CorruptError, match=f"sandbox {'c' * 64} is damaged"):
        await node.network().detach(dataclasses.replace(sandbox(), cni_result=b"{"), None)


async def test_many_sandboxes_come_and_go_at_once(node: Node) -> None:
    node.plugin("first")
    node.configure({"type": "first"})
    network = node.network()

    async def visit(number: int) -> None:
        container = dataclasses.replace(sandbox(), id=SandboxId(f"{number:064x}"))
        await network.detach(await attached(network, container), NETNS)

    await asyncio.gather(*(visit(number) for number in range(40)))
    assert sorted(node.order) == ["ADD first"] * 40 + ["DEL first"] * 40
    assert not node.cache.exists()
