# SPDX-License-Identifier: Apache-2.0
"""What a process without capabilities may do on the pod's network by default: ping, low ports."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import agent
from tests.support.cri_client import api
from tests.support.made_images import HANDLERS
from tests.support.mapped import mapped
from tests.support.mapped_pods import init, words
from tests.support.pods import Pods

pytestmark = pytest.mark.root

GROUPS = "net.ipv4.ping_group_range"
PORTS = "net.ipv4.ip_unprivileged_port_start"

# An echo request as ping sends it without CAP_NET_RAW (man 7 icmp), and its answer.
_PING = """import socket, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
kind, protocol = (128, 58) if ":" in sys.argv[1] else (8, 1)
with socket.socket(family, socket.SOCK_DGRAM, protocol) as sock:
    sock.settimeout(5)
    sock.sendto(bytes([kind, 0, 0, 0, 0, 0, 0, 1]), (sys.argv[1], 0))
    print(sock.recv(100)[0])
"""


def ping(pods: Pods, container_id: str, address: str, *, userns: bool = False) -> str:
    """The type of the answer that user 1000 gets in the container's network; "" = none allowed."""
    enter = ["nsenter", f"--target={init(pods, container_id).name}", "--net"]
    if userns:
        enter += ["--user", "--setuid=1000", "--setgid=1000"]
    else:
        enter += ["setpriv", "--reuid=1000", "--regid=1000", "--clear-groups"]
    done = subprocess.run(
        [*enter, sys.executable, "-I", "-S", "-c", _PING, address], capture_output=True, check=False
    )
    return done.stdout.decode().strip()


def powerless(config: api.ContainerConfig) -> None:
    context = config.linux.security_context
    context.run_as_user.value = context.run_as_group.value = 1000
    context.capabilities.drop_capabilities.append("ALL")
    context.no_new_privs = True


def value(pods: Pods, container_id: str, name: str) -> str:
    found = words(pods, container_id, "cat", "/proc/sys/" + name.replace(".", "/"))
    return " ".join(found.split())


@pytest.mark.parametrize("handler", HANDLERS)
@pytest.mark.parametrize("userns", [False, True])
def test_a_process_without_capabilities_pings_and_serves_port_80(
    pods: Pods, handler: str, *, userns: bool
) -> None:
    config = pods.config()
    if userns:
        mapped()(config)
    sandbox = pods.cri.run(config, handler=handler)
    container_id = pods.running(pod=(sandbox, config), change=powerless)
    for address in ("127.0.0.1", "10.88.0.1"):
        assert ping(pods, container_id, address, userns=userns) == "0"
    assert ping(pods, container_id, "::1", userns=userns) == "129"
    assert value(pods, container_id, GROUPS) == ("0 65535" if userns else "0 2147483647")
    words(pods, container_id, "httpd", "-p", "127.0.0.1:80")  # it binds, then goes on by itself


@pytest.mark.parametrize("name", [GROUPS, GROUPS.replace(".", "/")])
def test_a_sysctl_of_the_pod_is_used_instead(pods: Pods, name: str) -> None:
    sandbox = pods.sandbox(lambda config: config.linux.sysctls.update({name: "7 9", PORTS: "1024"}))
    container_id = pods.running(pod=sandbox, change=powerless)
    assert value(pods, container_id, GROUPS) == "7 9"
    assert value(pods, container_id, PORTS) == "1024"
    assert ping(pods, container_id, "127.0.0.1") == ""


def test_the_nodes_own_network_stays_as_it_is(pods: Pods) -> None:
    def host(config: api.PodSandboxConfig) -> None:
        config.linux.security_context.namespace_options.network = api.NODE

    files = [Path("/proc/sys", *name.split(".")) for name in (GROUPS, PORTS)]
    before = [file.read_text() for file in files]
    container_id = pods.running(pod=pods.sandbox(host))
    assert [file.read_text() for file in files] == before
    assert value(pods, container_id, GROUPS) == " ".join(before[0].split())


@pytest.mark.parametrize(
    ("key", "name", "kernel"),
    [("unprivileged_icmp", GROUPS, "1 0"), ("unprivileged_ports", PORTS, "1024")],
)
def test_a_key_turns_either_off(pods: Pods, key: str, name: str, kernel: str) -> None:
    agent.stop()
    pods.cri = agent.start(f"[network]\n{key} = false\n")
    container_id = pods.running(change=powerless)
    assert value(pods, container_id, name) == kernel
    agent.stop()
    agent.start().close()
