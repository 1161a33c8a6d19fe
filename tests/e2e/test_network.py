# SPDX-License-Identifier: Apache-2.0
"""The built-in network seen from a pod, from the node, and after somebody flushed the rules."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from criagent.kernel.nft_events import generation
from tests.support import agent
from tests.support.cri_client import api
from tests.support.pods import Pods
from tests.support.waiting import until

pytestmark = pytest.mark.root


@contextmanager
def server(address: str, port: int) -> Iterator[None]:
    """A TCP server of the node that says "node" to whoever connects."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        listener.listen()

        def answer() -> None:
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                client.sendall(b"node")
                client.close()

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def talks(pods: Pods, container_id: str, address: str, port: int) -> bool:
    command = f"echo | nc -w 2 {address} {port}"
    return pods.cri.exec(container_id, "sh", "-c", command).stdout == b"node"


def test_a_pod_has_its_addresses_routes_and_names(pods: Pods) -> None:
    sandbox, config = pods.sandbox(lambda c: setattr(c, "hostname", "my-pod"))
    container_id = pods.running(pod=(sandbox, config))
    network = pods.cri.pod_status(sandbox).network
    addresses = pods.cri.exec(container_id, "ip", "addr", "show", "eth0").stdout.decode()
    assert f"{network.ip}/32" in addresses
    assert f"{network.additional_ips[0].ip}/128" in addresses
    assert pods.cri.exec(container_id, "hostname").stdout == b"my-pod\n"
    assert pods.cri.exec(container_id, "cat", "/etc/hostname").stdout == b"my-pod\n"
    assert b"default via 10.88.0.1" in pods.cri.exec(container_id, "ip", "route").stdout
    assert pods.cri.exec(container_id, "ping", "-c", "1", "-W", "2", "10.88.0.1").exit_code == 0


def test_pods_reach_one_another_over_both_families(pods: Pods) -> None:
    sandbox, config = pods.sandbox()
    serve = "while :; do echo pod | nc -l -p 7000; done"
    server_row = pods.running("sh", "-c", serve, pod=(sandbox, config))
    client = pods.running()
    network = pods.cri.pod_status(sandbox).network
    for address in (network.ip, network.additional_ips[0].ip):
        until(
            lambda address=address: (
                pods.cri.exec(client, "sh", "-c", f"echo | nc -w 1 {address} 7000").stdout
                == b"pod\n"
            ),
            f"an answer of {address}",
        )
    assert pods.cri.status(server_row).state == api.CONTAINER_RUNNING


def test_the_hosts_loopback_is_out_of_reach(pods: Pods) -> None:
    container_id = pods.running()
    with server("127.0.0.1", 7100):
        assert not talks(pods, container_id, "127.0.0.1", 7100)
        assert not talks(pods, container_id, "10.88.0.1", 7100)
        # The attack: a route for 127.0.0.0/8 to the gateway (needs NET_ADMIN in the pod).
        subprocess.run(
            ["nsenter", f"--net={netns(pods, container_id)}", "sh", "-c", ROUTE_LOOPBACK],
            check=True,
        )
        done = subprocess.run(
            [
                "nsenter",
                f"--net={netns(pods, container_id)}",
                "busybox",
                "nc",
                "-w",
                "2",
                "127.0.0.9",
                "7100",
            ],
            input=b"\n",
            capture_output=True,
            check=False,
        )
        assert done.stdout != b"node"


ROUTE_LOOPBACK = """
echo 1 > /proc/sys/net/ipv4/conf/all/route_localnet
echo 1 > /proc/sys/net/ipv4/conf/eth0/route_localnet
ip addr del 127.0.0.1/8 dev lo
ip route add 127.0.0.0/8 via 10.88.0.1 dev eth0 onlink
"""


def test_only_what_the_node_offers_on_all_addresses_listens_on_the_gateway(pods: Pods) -> None:
    container_id = pods.running()
    with server("0.0.0.0", 7200):
        assert talks(pods, container_id, "10.88.0.1", 7200)
    script = "for p in $(seq 1 1024); do echo | nc -w 1 10.88.0.1 $p && echo open $p; done; true"
    found = pods.cri.exec(container_id, "sh", "-c", script, timeout=60).stdout
    assert found == b""


def test_host_ports_lead_to_the_pod_and_go_with_it(pods: Pods) -> None:
    def ports(config: api.PodSandboxConfig) -> None:
        config.port_mappings.add(host_port=7300, container_port=80)
        config.port_mappings.add(host_port=7301, container_port=80, host_ip="127.0.0.1")

    sandbox, config = pods.sandbox(ports)
    script = "mkdir /www; echo page > /www/index.html; exec httpd -f -h /www"
    pods.running("sh", "-c", script, pod=(sandbox, config))
    other = pods.running()
    until(lambda: fetched("http://127.0.0.1:7300/") == "page\n", "the page")
    assert fetched("http://127.0.0.1:7301/") == "page\n"
    assert fetched("http://10.88.0.1:7300/") == "page\n"
    assert fetched("http://10.88.0.1:7301/") == ""
    through = pods.cri.exec(other, "wget", "-qO-", "http://10.88.0.1:7300/").stdout
    assert through == b"page\n"
    pods.cri.stop_pod(sandbox)
    assert fetched("http://127.0.0.1:7300/") == ""


def test_a_host_port_takes_no_traffic_for_other_addresses(pods: Pods) -> None:
    def wants(config: api.PodSandboxConfig) -> None:
        config.port_mappings.add(host_port=7360, container_port=80)

    pods.sandbox(wants)
    other, config = pods.sandbox()
    pods.running("sh", "-c", "while :; do echo other | nc -l -p 7360; done", pod=(other, config))
    client = pods.running()
    address = pods.cri.pod_status(other).network.ip
    until(
        lambda: (
            pods.cri.exec(client, "sh", "-c", f"echo | nc -w 1 {address} 7360").stdout == b"other\n"
        ),
        "an answer of the other pod",
    )


def test_a_pod_that_is_refused_a_host_port_does_not_take_it_from_its_owner(pods: Pods) -> None:
    def wants(config: api.PodSandboxConfig) -> None:
        config.port_mappings.add(host_port=7350, container_port=80)

    sandbox, config = pods.sandbox(wants)
    script = "mkdir /www; echo page > /www/index.html; exec httpd -f -h /www"
    pods.running("sh", "-c", script, pod=(sandbox, config))
    until(lambda: fetched("http://127.0.0.1:7350/") == "page\n", "the page")
    with pytest.raises(grpc.RpcError, match="7350"):
        pods.sandbox(wants)
    assert fetched("http://127.0.0.1:7350/") == "page\n"


@pytest.mark.parametrize("host_ip", ["", "10.88.0.1"])
def test_known_udp_flows_follow_a_host_port_to_its_next_pod(pods: Pods, host_ip: str) -> None:
    def wants(config: api.PodSandboxConfig) -> None:
        config.port_mappings.add(
            protocol=api.UDP, host_port=7365, container_port=53, host_ip=host_ip
        )

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.bind(("", 7366))  # all that it sends is one flow

        def heard(server: subprocess.Popen[bytes]) -> bool:
            client.sendto(b"datagram", ("10.88.0.1", 7365))
            return server.poll() is not None

        for _ in range(2):
            sandbox, _ = pods.sandbox(wants)
            inside = ["nsenter", f"--net=/run/criagent/sandboxes/{sandbox}/ns/net"]
            server = subprocess.Popen([*inside, sys.executable, "-c", ONE_DATAGRAM])
            try:
                until(lambda server=server: heard(server), "a datagram")
            finally:
                server.kill()
            assert server.wait() == 0
            pods.cri.remove_pod(sandbox)


ONE_DATAGRAM = """
import socket
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
    server.bind(("", 53))
    server.recv(100)
"""


@pytest.fixture
def hanging_conntrack(tmp_path: Path) -> Iterator[Path]:
    """A conntrack that never ends; the file is there once one was started."""
    started = tmp_path / "started"
    program = Path("/usr/local/sbin/conntrack")
    program.write_text(f"#!/bin/sh\ntouch {started}\nexec sleep 7654\n")
    program.chmod(0o755)
    yield started
    program.unlink()


def test_a_conntrack_that_hangs_keeps_no_pod_from_its_network(
    pods: Pods, hanging_conntrack: Path
) -> None:
    def wants(config: api.PodSandboxConfig) -> None:
        config.port_mappings.add(protocol=api.UDP, host_port=7370, container_port=53)

    def others_go_on(hanging: Future[Any]) -> Any:
        until(hanging_conntrack.exists, "conntrack")
        pods.cri.remove_pod(pods.sandbox()[0])
        assert not hanging.done()
        hanging_conntrack.unlink()
        return hanging.result()

    with ThreadPoolExecutor() as executor:
        sandbox, _ = others_go_on(executor.submit(pods.sandbox, wants))
        others_go_on(executor.submit(pods.cri.remove_pod, sandbox))
    assert pods.cri.pods() == []
    rules = subprocess.check_output(["nft", "list", "ruleset"], text=True)
    assert "7370" not in rules
    assert subprocess.run(["pgrep", "-f", "sleep 7654"], check=False).returncode == 1


@pytest.mark.parametrize(
    "command",
    [
        "delete table inet criagent",
        "flush table inet criagent",
        "flush chain inet criagent postrouting",
        "delete table bridge criagent",
        "flush table bridge criagent",
        "flush chain bridge criagent from_arp",
        "flush ruleset",
        "flush ruleset; add table inet criagent",
    ],
)
def test_rules_come_back_after_every_kind_of_foreign_deletion(pods: Pods, command: str) -> None:
    rules = subprocess.check_output(["nft", "list", "ruleset"])
    for _ in range(5):  # some of them hit the agent while it writes
        subprocess.run(["nft", command], check=False, capture_output=True)
    until(lambda: subprocess.check_output(["nft", "list", "ruleset"]) == rules, command, 5)
    # What the agent writes is no reason for it to write again.
    container_id = pods.running()

    def quiet() -> bool:
        before = generation()
        return pods.cri.exec(container_id, "sleep", "0.3").exit_code == 0 and generation() == before

    until(quiet, "an unchanged ruleset", 5)


def test_rules_come_back_after_a_foreign_flush(pods: Pods) -> None:
    sandbox, config = pods.sandbox(lambda c: c.port_mappings.add(host_port=7400, container_port=80))
    script = "mkdir /www; echo page > /www/index.html; exec httpd -f -h /www"
    pods.running("sh", "-c", script, pod=(sandbox, config))
    until(lambda: fetched("http://127.0.0.1:7400/") == "page\n", "the page")
    rules = subprocess.check_output(["nft", "list", "ruleset"])
    subprocess.run(["nft", "flush", "ruleset"], check=True)
    until(lambda: subprocess.check_output(["nft", "list", "ruleset"]) == rules, "the rules", 5)
    assert fetched("http://127.0.0.1:7400/") == "page\n"


@pytest.mark.parametrize("seen_by", ["the next pod", "the condition", "the next start"])
def test_a_deleted_bridge_comes_back_with_its_pods(pods: Pods, seen_by: str) -> None:
    container_id = pods.running()
    subprocess.run(["ip", "link", "del", "cri0"], check=True)
    if seen_by == "the next pod":
        pods.running()
    elif seen_by == "the next start":
        agent.stop()
        pods.cri = agent.start()
    else:
        network = ready(pods)
        assert (network.status, network.reason) == (False, "BridgeNotReady")
        assert "deleted the bridge cri0" in network.message
        until(lambda: ready(pods).status, "readiness", 5)
    # ARP and forwarding through the bridge: the gateway answers, and so does another pod.
    other, _ = pods.sandbox()
    for address in ("10.88.0.1", pods.cri.pod_status(other).network.ip):
        until(
            lambda address=address: (
                pods.cri.exec(container_id, "ping", "-c1", "-W1", address).exit_code == 0
            ),
            f"an answer of {address}",
        )


def ready(pods: Pods) -> api.RuntimeCondition:
    conditions = pods.cri.runtime.Status(api.StatusRequest()).status.conditions
    return next(one for one in conditions if one.type == "NetworkReady")


def test_a_host_network_pod_uses_the_nodes_own(pods: Pods) -> None:
    def host(config: api.PodSandboxConfig) -> None:
        config.linux.security_context.namespace_options.network = api.NODE

    sandbox, config = pods.sandbox(host)
    container_id = pods.running(pod=(sandbox, config))
    assert pods.cri.pod_status(sandbox).network.ip == ""
    assert b"cri0" in pods.cri.exec(container_id, "ip", "link").stdout
    assert (
        pods.cri.exec(container_id, "hostname").stdout
        == Path("/proc/sys/kernel/hostname").read_bytes()
    )


def netns(pods: Pods, container_id: str) -> str:
    found = next(c for c in pods.cri.containers() if c.id == container_id)
    return f"/run/criagent/sandboxes/{found.pod_sandbox_id}/ns/net"


def fetched(url: str) -> str:
    command = ["curl", "-s", "--max-time", "2", url]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout
