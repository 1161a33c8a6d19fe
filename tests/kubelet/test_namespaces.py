# SPDX-License-Identifier: Apache-2.0
"""The network and the namespaces of pods: their own, shared, the node's."""

from __future__ import annotations

import json
import os
import socket
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.cri_client import Cri, api
from tests.support.kubelet_node import (
    ADDRESS,
    LIMIT_S,
    Json,
    Kubelet,
    ids,
    restarts,
    run,
    shell,
    sleeper,
    until,
)

_SERVER = "mkdir /www; echo hi > /www/x; exec httpd -f -p {port} -h /www"


def test_host_ports_are_reached_from_outside(kubelet: Kubelet) -> None:
    ports = [
        {"containerPort": 8080, "hostPort": 28080},
        {"containerPort": 5353, "hostPort": 25353, "protocol": "UDP"},
    ]
    kubelet.add("ports", {"containers": [shell("main", _SERVER.format(port=8080), ports=ports)]})
    kubelet.add("client", {"containers": [sleeper("main")]})
    pod = kubelet.until_ready("ports")
    client = kubelet.until_ready("client")
    with _udp_socket_in(pod) as server:
        for address in ("127.0.0.1", ADDRESS):
            url = f"http://{address}:28080/x"
            until(lambda url=url: _served(url) == "hi\n", url, LIMIT_S)
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client_socket:
                client_socket.sendto(address.encode(), (address, 25353))
                assert server.recv(100) == address.encode()
    assert run(client, "main", "wget", "-qO-", f"http://{ADDRESS}:28080/x") == "hi\n"
    kubelet.remove("ports")
    with pytest.raises(urllib.error.URLError):
        _page("http://127.0.0.1:28080/x")


def test_a_pod_in_the_nodes_namespaces(kubelet: Kubelet) -> None:
    kubelet.add(
        "host",
        {
            "hostNetwork": True,
            "hostPID": True,
            "hostIPC": True,
            "containers": [shell("main", _SERVER.format(port=28081))],
        },
    )
    kubelet.add("own", {"containers": [sleeper("one"), sleeper("two")]})
    pod, own = kubelet.until_ready("host"), kubelet.until_ready("own")
    for kind in ("net", "pid", "ipc"):
        node = os.readlink(f"/proc/self/ns/{kind}")
        assert run(pod, "main", "readlink", f"/proc/self/ns/{kind}").strip() == node, kind
        mine = [
            run(own, name, "readlink", f"/proc/self/ns/{kind}").strip() for name in ("one", "two")
        ]
        assert node not in mine
        assert (mine[0] == mine[1]) == (kind != "pid"), kind
    until(lambda: _served("http://127.0.0.1:28081/x") == "hi\n", "its page", LIMIT_S)
    assert str(os.getpid()) in run(pod, "main", "ps", "-o", "pid").split()


def test_a_shared_pid_namespace(kubelet: Kubelet) -> None:
    marked = "trap 'exit 9' USR1; while :; do sleep 0.1; done"
    kubelet.add(
        "shared",
        {
            "shareProcessNamespace": True,
            "containers": [shell("worker", marked), sleeper("tools")],
        },
    )
    pod = kubelet.until_ready("shared")
    seen = [
        line.split(maxsplit=1) for line in run(pod, "tools", "ps", "-o", "pid,args").splitlines()
    ]
    worker, *_ = [pid for pid, args in seen[1:] if "exit 9" in args]
    assert worker != "1"
    run(pod, "tools", "kill", "-USR1", worker)
    after = kubelet.until("shared", lambda pod: restarts(pod)["worker"] == 1, "its restart")
    last = {one["name"]: one["lastState"] for one in after["status"]["containerStatuses"]}
    assert last["worker"]["terminated"]["exitCode"] == 9
    after = kubelet.until_ready("shared")
    assert restarts(after) == {"worker": 1, "tools": 0}
    assert ids(after)["tools"] == ids(pod)["tools"]
    seen_again = run(after, "tools", "ps", "-o", "args")
    assert "exit 9" in seen_again


def test_names_and_settings_of_a_pod(kubelet: Kubelet) -> None:
    kubelet.add(
        "named",
        {
            "hostname": "chosen",
            "hostAliases": [{"ip": "192.0.2.7", "hostnames": ["seven.test"]}],
            "dnsPolicy": "None",
            "dnsConfig": {
                "nameservers": ["192.0.2.53"],
                "searches": ["one.test", "two.test"],
                "options": [{"name": "ndots", "value": "3"}],
            },
            "securityContext": {
                "sysctls": [
                    {"name": "net.ipv4.ip_local_port_range", "value": "40000 41000"},
                    {"name": "kernel.shm_rmid_forced", "value": "1"},
                ]
            },
            "containers": [sleeper("main")],
        },
    )
    pod = kubelet.until_ready("named")
    assert run(pod, "main", "hostname") == "chosen\n"
    hosts = run(pod, "main", "cat", "/etc/hosts")
    assert "192.0.2.7\tseven.test" in hosts
    assert f"{pod['status']['podIP']}\tchosen" in hosts
    lines = run(pod, "main", "cat", "/etc/resolv.conf").splitlines()
    assert lines == ["search one.test two.test", "nameserver 192.0.2.53", "options ndots:3"]
    assert run(pod, "main", "cat", "/proc/sys/net/ipv4/ip_local_port_range").split() == [
        "40000",
        "41000",
    ]
    assert run(pod, "main", "cat", "/proc/sys/kernel/shm_rmid_forced") == "1\n"


def _page(url: str) -> str:
    with urllib.request.urlopen(url, timeout=LIMIT_S) as answer:
        return str(answer.read().decode())


def _served(url: str) -> str:
    """The page, "" while nobody listens."""
    try:
        return _page(url)
    except OSError:
        return ""


def _udp_socket_in(pod: Json) -> socket.socket:
    """A socket in the pod's network, where it stays; busybox has no UDP server."""
    cri = Cri()
    container_id = ids(pod)["main"].removeprefix("criagent://")
    request = api.ContainerStatusRequest(container_id=container_id, verbose=True)
    pid = json.loads(cri.runtime.ContainerStatus(request).info["info"])["pid"]
    cri.close()

    def make() -> socket.socket:
        with Path(f"/proc/{pid}/ns/net").open() as network:
            os.setns(network.fileno(), os.CLONE_NEWNET)  # type: ignore[attr-defined]
        server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        server.bind(("0.0.0.0", 5353))
        server.settimeout(LIMIT_S)
        return server

    with ThreadPoolExecutor(1) as thread:  # the thread alone changes its network
        return thread.submit(make).result()
