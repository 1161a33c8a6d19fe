# SPDX-License-Identifier: Apache-2.0
"""hostPorts: the node's own addresses lead to the pod, and no others do."""

from __future__ import annotations

import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path

import grpc
import pytest

from criagent.kernel.namespaces import in_netns
from tests.support.cri_client import api
from tests.support.outside import NETNS, OUTSIDE, outside
from tests.support.packets import Wire
from tests.support.pods import Pods
from tests.support.waiting import until

pytestmark = pytest.mark.root
NODE = Path("/proc/self/ns/net")
PROTOCOLS = {"TCP": 6, "UDP": 17, "SCTP": 132}
SERVE = "mkdir /www; echo {} > /www/index.html; exec httpd -f -p {} -h /www"


def netns(sandbox: str) -> Path:
    return Path(f"/run/criagent/sandboxes/{sandbox}/ns/net")


@pytest.fixture
def stranger() -> Iterator[None]:
    """Somebody outside of the node."""
    with outside():
        yield


def first_packet(protocol: str, source: str, target: str, port: int) -> None:
    """What a client's connection begins with; nobody answers."""
    family = socket.AF_INET6 if ":" in target else socket.AF_INET
    match protocol:
        case "TCP":
            with socket.socket(family, socket.SOCK_STREAM) as client:
                client.bind((source, 0))
                client.setblocking(False)
                assert client.connect_ex((target, port)) == 115  # EINPROGRESS
        case "UDP":
            with socket.socket(family, socket.SOCK_DGRAM) as client:
                client.bind((source, 0))
                client.sendto(b"datagram", (target, port))
        case "SCTP":
            chunk = struct.pack("!BBHIIHHI", 1, 0, 20, 1, 65535, 1, 1, 1)  # INIT, RFC 9260
            packet = struct.pack("!HHII", 4242, port, 0, 0) + chunk
            packet = packet[:8] + struct.pack("<I", crc32c(packet)) + packet[12:]
            with socket.socket(family, socket.SOCK_RAW, PROTOCOLS["SCTP"]) as client:
                client.bind((source, 0))
                client.sendto(packet, (target, 0))


def crc32c(data: bytes) -> int:
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value ^ 0xFFFFFFFF


def is_for(frame: bytes, protocol: str, port: int) -> bool:
    """Whether that Ethernet frame has a packet to that port."""
    at = 54 if frame[12:14] == b"\x86\xdd" else 34
    kind = frame[20] if at == 54 else frame[23]
    return kind == PROTOCOLS[protocol] and frame[at + 2 : at + 4] == port.to_bytes(2, "big")


@pytest.mark.usefixtures("stranger")
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_address_that_is_not_the_nodes_is_nobodys_to_take(pods: Pods, protocol: str) -> None:
    """CVE-2025-67499 for mappings with a hostIP: for traffic of pods and of the node."""

    def wants(config: api.PodSandboxConfig) -> None:
        for address in OUTSIDE:
            config.port_mappings.add(
                protocol=api.Protocol.Value(protocol),
                host_port=7443,
                container_port=443,
                host_ip=address,
            )

    attacker, _ = pods.sandbox(wants)
    client, _ = pods.sandbox()
    own = pods.cri.pod_status(client).network
    theirs, taken = Wire(NETNS), Wire(netns(attacker))
    sources = {NODE: ("", "::"), netns(client): (own.ip, own.additional_ips[0].ip)}
    for namespace, addresses in sources.items():
        for target in OUTSIDE:
            source = addresses[":" in target]
            in_netns(
                namespace,
                lambda source=source, target=target: first_packet(protocol, source, target, 7443),
            )
            while not is_for(theirs.next(), protocol, 7443):
                pass
    assert [frame for frame in taken.waiting() if is_for(frame, protocol, 443)] == []
    theirs.close()
    taken.close()


@contextmanager
def service(priority: int, target: str) -> Iterator[None]:
    """A table as kube-proxy's: the Service 10.96.0.10:53 leads to `target`."""
    rule = f"ip daddr 10.96.0.10 tcp dport 53 dnat to {target}:53"
    text = f"""table ip standin {{
        chain prerouting {{ type nat hook prerouting priority {priority}; {rule}; }}
        chain output {{ type nat hook output priority {priority}; {rule}; }}
    }}"""
    subprocess.run(["nft", "-f", "-"], input=text, text=True, check=True)
    subprocess.run(["ip", "route", "add", "10.96.0.0/16", "dev", "cri0"], check=True)
    try:
        yield
    finally:
        subprocess.run(["ip", "route", "del", "10.96.0.0/16", "dev", "cri0"], check=True)
        subprocess.run(["nft", "delete table ip standin"], check=True)


@pytest.mark.parametrize("priority", [-150, -101, -100, -99, -50])
@pytest.mark.parametrize("ours_last", [False, True])
def test_a_service_is_not_taken_whoever_comes_first(
    pods: Pods, priority: int, ours_last: bool
) -> None:
    def wants(config: api.PodSandboxConfig) -> None:
        config.port_mappings.add(host_port=53, container_port=53, host_ip="10.96.0.10")

    attacker = pods.sandbox(wants)
    pods.running("sh", "-c", SERVE.format("taken", 53), pod=attacker)
    backend = pods.sandbox()
    pods.running("sh", "-c", SERVE.format("right", 53), pod=backend)
    client = pods.running()
    served = {
        pods.cri.pod_status(sandbox).network.ip: sandbox for sandbox, _ in (attacker, backend)
    }
    for address in served:
        until(lambda address=address: page(address, 53), f"an answer of {address}")
    with service(priority, pods.cri.pod_status(backend[0]).network.ip):
        if ours_last:
            rules = subprocess.check_output(["nft", "list", "table", "inet", "criagent"])
            subprocess.run(["nft", "delete table inet criagent"], check=True)
            listing = ["nft", "list", "table", "inet", "criagent"]
            until(lambda: same_output(listing, rules), "the agent's table")
        assert page("10.96.0.10", 53) == "right\n"
        done = pods.cri.exec(client, "wget", "-qO-", "-T", "5", "http://10.96.0.10:53/")
        assert done.stdout == b"right\n"


def same_output(command: list[str], expected: bytes) -> bool:
    return subprocess.run(command, capture_output=True, check=False).stdout == expected


@pytest.mark.parametrize(
    ("host_ip", "reached", "unreached"),
    [
        ("", ["127.0.0.1", "10.88.0.1", "fd00:10:88::1"], []),
        ("0.0.0.0", ["127.0.0.1", "10.88.0.1"], ["fd00:10:88::1"]),
        ("::", ["fd00:10:88::1"], ["127.0.0.1", "10.88.0.1"]),
        ("127.0.0.1", ["127.0.0.1"], ["10.88.0.1", "127.0.0.2"]),
        ("127.0.0.2", ["127.0.0.2"], ["10.88.0.1", "127.0.0.1"]),
        ("10.88.0.1", ["10.88.0.1"], ["127.0.0.1", "fd00:10:88::1"]),
        ("fd00:10:88::1", ["fd00:10:88::1"], ["10.88.0.1"]),
    ],
)
def test_an_address_of_the_node_leads_to_the_pod(
    pods: Pods, host_ip: str, reached: list[str], unreached: list[str]
) -> None:
    """From the node; where it is no loopback address, from other pods and the pod itself, too."""

    def wants(config: api.PodSandboxConfig) -> None:
        config.port_mappings.add(host_port=7500, container_port=80, host_ip=host_ip)

    made = pods.sandbox(wants)
    container_ids = [pods.running("sh", "-c", SERVE.format("page", 80), pod=made), pods.running()]
    until(lambda: page(reached[0]) == "page\n", "the page")
    assert [address for address in reached if page(address) != "page\n"] == []
    assert [address for address in unreached if page(address)] == []
    for container_id in container_ids:
        for address in reached:
            if not ip_address(address).is_loopback:
                done = pods.cri.exec(container_id, "wget", "-qO-", "-T", "3", url(address))
                assert done.stdout == b"page\n", address


def test_a_port_that_leads_to_two_is_refused_and_leaves_nothing(pods: Pods) -> None:
    def wants(config: api.PodSandboxConfig) -> None:
        for port in (80, 81):
            config.port_mappings.add(host_port=7600, container_port=port)

    with pytest.raises(grpc.RpcError, match="7600/TCP is mapped to two container ports") as caught:
        pods.sandbox(wants)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert pods.cri.pods() == []


def url(address: str, port: int = 7500) -> str:
    return f"http://[{address}]:{port}/" if ":" in address else f"http://{address}:{port}/"


def page(address: str, port: int = 7500) -> str:
    command = ["curl", "-s", "--max-time", "5", url(address, port)]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout
