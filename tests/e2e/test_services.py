# SPDX-License-Identifier: Apache-2.0
"""What kube-proxy counts on: pods reach Services, and themselves by them, as who they are.

The rules here are those that kube-proxy writes for a Service with one pod: a redirection, and a
masquerade for the pod that reaches itself.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.cri_client import api
from tests.support.pods import Pods
from tests.support.waiting import until

pytestmark = pytest.mark.root
SERVICE = "10.96.0.99"
# What a client gets is the address that it is seen with.
WHO = (
    "mkdir -p /www/cgi-bin; printf '#!/bin/sh\\necho; echo $REMOTE_ADDR\\n' > /www/cgi-bin/who;"
    " chmod +x /www/cgi-bin/who; exec httpd -f -h /www"
)
_CALLS = [Path(f"/proc/sys/net/bridge/bridge-nf-call-{name}tables") for name in ("ip", "ip6")]


@pytest.fixture(params=["1", "0"], ids=["bridged-traffic-filtered", "bridged-traffic-alone"])
def filtered(request: pytest.FixtureRequest) -> Iterator[None]:
    """br_netfilter as Kubernetes asks for it, and off; a kernel without it is as with it off."""
    there = [switch for switch in _CALLS if switch.exists()]
    if not there and request.param == "1":
        pytest.skip("the kernel has no br_netfilter")
    before = [switch.read_text() for switch in there]
    for switch in there:
        switch.write_text(request.param)
    yield
    for switch, value in zip(there, before, strict=True):
        switch.write_text(value)


@pytest.fixture
def service() -> Iterator[Callable[[str], None]]:
    """Makes the Service of the pod with that address."""

    def make(address: str) -> None:
        rules = f"""table ip services {{
          chain prerouting {{
            type nat hook prerouting priority dstnat; policy accept;
            ip daddr {SERVICE} tcp dport 80 ip saddr {address} meta mark set meta mark or 0x4000
            ip daddr {SERVICE} tcp dport 80 dnat to {address}:80
          }}
          chain postrouting {{
            type nat hook postrouting priority srcnat; policy accept;
            meta mark and 0x4000 != 0 masquerade fully-random
          }}
        }}"""
        subprocess.run(["nft", "-f", "-"], input=rules, text=True, check=True)

    yield make
    subprocess.run(["nft", "destroy", "table", "ip", "services"], check=True)


def _seen_as(pods: Pods, container_id: str, host: str) -> str:
    """The address with which the server at `host` sees that container."""
    command = ["wget", "-q", "-T", "5", "-O", "-", f"http://{host}/cgi-bin/who"]
    answer = pods.cri.exec(container_id, *command).stdout.decode()
    return str(answer.strip().strip("[]").removeprefix("::ffff:"))


def _address(pods: Pods, sandbox: str) -> str:
    return str(pods.cri.pod_status(sandbox).network.ip)


@pytest.mark.usefixtures("filtered")
def test_a_pod_reaches_itself_by_its_service(pods: Pods, service: Callable[[str], None]) -> None:
    sandbox, config = pods.sandbox()
    container_id = pods.running("sh", "-c", WHO, pod=(sandbox, config))
    address = _address(pods, sandbox)
    until(lambda: _seen_as(pods, container_id, address) == address, "an answer")
    service(address)
    assert _seen_as(pods, container_id, SERVICE) == "10.88.0.1"


@pytest.mark.usefixtures("filtered")
def test_a_pod_is_seen_with_its_own_address_behind_a_service(
    pods: Pods, service: Callable[[str], None]
) -> None:
    sandbox, config = pods.sandbox()
    pods.running("sh", "-c", WHO, pod=(sandbox, config))
    other, other_config = pods.sandbox()
    client = pods.running(pod=(other, other_config))
    address = _address(pods, sandbox)
    until(lambda: _seen_as(pods, client, address) == _address(pods, other), "an answer")
    service(address)
    assert _seen_as(pods, client, SERVICE) == _address(pods, other)


@pytest.mark.usefixtures("filtered")
def test_a_pod_is_seen_with_its_own_address_behind_a_host_port(pods: Pods) -> None:
    def hosted(config: api.PodSandboxConfig) -> None:
        config.port_mappings.add(container_port=80, host_port=8085)

    sandbox, config = pods.sandbox(hosted)
    container_id = pods.running("sh", "-c", WHO, pod=(sandbox, config))
    other, other_config = pods.sandbox()
    client = pods.running(pod=(other, other_config))
    address = _address(pods, sandbox)
    until(lambda: _seen_as(pods, client, address) == _address(pods, other), "an answer")
    assert _seen_as(pods, client, "10.88.0.1:8085") == _address(pods, other)
    assert _seen_as(pods, container_id, "10.88.0.1:8085") == "10.88.0.1"
    second = str(pods.cri.pod_status(other).network.additional_ips[0].ip)
    assert _seen_as(pods, client, "[fd00:10:88::1]:8085") == second
    assert _seen_as(pods, container_id, "[fd00:10:88::1]:8085") == "fd00:10:88::1"
