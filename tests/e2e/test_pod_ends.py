# SPDX-License-Identifier: Apache-2.0
"""What a pod that has ended still holds: its addresses, until the kernel has removed its link."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import grpc
import pytest

from tests.support import agent
from tests.support.cri_client import Cri, api, container
from tests.support.node_state import address_owners, node_state
from tests.support.pods import Pods
from tests.support.waiting import until

pytestmark = pytest.mark.root
CGROUPS = Path("/sys/fs/cgroup/cri")
SMALL = "10.97.0.0/29"  # five pods
FORMER = "10.88.0.0/16,fd00:10:88::/64"


def link(sandbox: str) -> str:
    return f"cri{sandbox[:11]}"


def exists(sandbox: str) -> bool:
    return Path("/sys/class/net", link(sandbox)).exists()


def guarded(sandbox: str) -> bool:
    """Whether the anti-spoofing rules still know the pod's link."""
    return any(link(sandbox) in line for line in node_state()["nftables"])


@contextmanager
def held(sandbox: str) -> Iterator[None]:
    """Somebody has the pod's network namespace open, so the kernel keeps it."""
    fd = os.open(f"/run/criagent/sandboxes/{sandbox}/ns/net", os.O_RDONLY)
    try:
        yield
    finally:
        os.close(fd)


def use_cidrs(cri: Cri, cidrs: str) -> None:
    network = api.NetworkConfig(pod_cidr=cidrs)
    config = api.RuntimeConfig(network_config=network)
    cri.runtime.UpdateRuntimeConfig(api.UpdateRuntimeConfigRequest(runtime_config=config))


@pytest.fixture
def five_addresses(pods: Pods) -> Iterator[Pods]:
    """A node whose pod network has five addresses; the usual one afterwards."""
    use_cidrs(pods.cri, SMALL)
    yield pods
    for sandbox in pods.cri.pods():
        pods.cri.remove_pod(sandbox.id)
    until(lambda: not address_owners(), "the release of addresses")
    use_cidrs(pods.cri, FORMER)
    subprocess.run(["ip", "addr", "del", "10.97.0.1/29", "dev", "cri0"], check=True)


def test_nothing_of_a_pod_is_left_once_its_link_is_gone(pods: Pods) -> None:
    sandbox, _ = pods.sandbox()
    assert exists(sandbox)
    assert guarded(sandbox)
    pods.cri.stop_pod(sandbox)
    assert not Path(f"/run/criagent/sandboxes/{sandbox}/ns/net").exists()
    until(lambda: not address_owners(), "the release of addresses")
    assert not exists(sandbox)
    assert not guarded(sandbox)


def test_addresses_and_rules_stay_as_long_as_the_link(pods: Pods) -> None:
    """Until then the pod's traffic is checked, and no other pod can get it."""
    sandbox, _ = pods.sandbox()
    with held(sandbox):
        pods.cri.stop_pod(sandbox)
        pods.cri.remove_pod(sandbox)
        owners, checked = address_owners(), guarded(sandbox)
        there = exists(sandbox)  # looked at last: what holds for it held before
        assert there, "the agent deleted the link at once; then this test sees nothing"
        assert owners == {sandbox}
        assert checked
        until(lambda: not exists(sandbox), "the deletion of the link")
    until(lambda: not address_owners(), "the release of addresses")
    assert not guarded(sandbox)
    assert "link_outlived_pod" in agent.LOG.read_text()


def test_a_host_port_is_free_when_the_stop_returns(pods: Pods) -> None:
    def port(config: api.PodSandboxConfig) -> None:
        config.port_mappings.add(host_port=7390, container_port=80)

    first, _ = pods.sandbox(port)
    with held(first):
        pods.cri.stop_pod(first)
        second, config = pods.sandbox(port)
        serve = "mkdir /www; echo second > /www/index.html; exec httpd -f -h /www"
        pods.running("sh", "-c", serve, pod=(second, config))
        page = ["curl", "-s", "--max-time", "2", "http://127.0.0.1:7390/"]
        until(
            lambda: subprocess.run(page, capture_output=True, check=False).stdout == b"second\n",
            "the page of the second pod",
        )
    pods.cri.remove_pod(first)


def test_a_full_network_waits_for_pods_that_have_ended(five_addresses: Pods) -> None:
    """The kubelet replaces all pods of a node that has no address to spare."""
    pods = five_addresses
    old = [pods.sandbox()[0] for _ in range(5)]
    before = {pods.cri.pod_status(one).network.ip for one in old}
    assert len(before) == 5
    with pytest.raises(grpc.RpcError, match="no free address"):
        pods.sandbox()
    with held(old[0]), ThreadPoolExecutor(5) as threads:
        list(threads.map(pods.cri.remove_pod, old))
        new = list(threads.map(lambda _: pods.sandbox()[0], range(5)))
        assert not exists(old[0])
    after = {pods.cri.pod_status(one).network.ip for one in new}
    assert after == before
    with pytest.raises(grpc.RpcError, match="no free address"):
        pods.sandbox()


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_an_agent_that_ends_meanwhile_leaves_nothing(pods: Pods, how: str) -> None:
    sandbox, _ = pods.sandbox()
    with held(sandbox):
        pods.cri.remove_pod(sandbox)
        agent.kill() if how == "kill" else agent.stop()
        # On a slow machine it has deleted the link before it ended: never the address first.
        assert address_owners() == {sandbox} or not exists(sandbox)
        pods.cri = agent.start()
        assert not exists(sandbox)
        assert address_owners() == set()
        assert not guarded(sandbox)


def test_many_pods_that_end_at_once_leave_nothing(pods: Pods) -> None:
    with ThreadPoolExecutor(10) as threads:
        made = [one for one, _ in threads.map(lambda _: pods.sandbox(), range(30))]
        list(threads.map(pods.cri.remove_pod, made))
    until(lambda: not address_owners(), "the release of addresses")
    assert not [one for one in made if exists(one) or guarded(one)]


def test_a_creation_that_its_pods_removal_cuts_off_leaves_no_cgroup(pods: Pods) -> None:
    """The removal comes when the OCI runtime has made the cgroup and may just be entering it."""

    def cgroups() -> set[str]:
        return {path.name for path in CGROUPS.glob("*/")}

    def create(sandbox: str, config: api.PodSandboxConfig) -> None:
        with suppress(grpc.RpcError):
            pods.cri.create(sandbox, container("main", ["sleep", "1000"]), config)

    before = cgroups()
    for _ in range(30):
        sandbox, config = pods.sandbox()
        with ThreadPoolExecutor(1) as thread:
            creation = thread.submit(create, sandbox, config)
            while cgroups() == before and not creation.done():
                pass
            pods.cri.remove_pod(sandbox)
        assert cgroups() == before
