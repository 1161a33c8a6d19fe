# SPDX-License-Identifier: Apache-2.0
"""Pods that live on while the kubelet gives the node another range of addresses."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path

import grpc
import pytest

from tests.support import agent
from tests.support.cri_client import Cri, api
from tests.support.outside import NETNS, OUTSIDE, outside
from tests.support.pods import Pods
from tests.support.waiting import until

pytestmark = pytest.mark.root
FORMER = "10.88.0.0/16,fd00:10:88::/64"
LATER = "10.97.0.0/24,fd00:10:97::/64"
# What a client gets is the address that it is seen with.
WHO = (
    "mkdir -p /www/cgi-bin; printf '#!/bin/sh\\necho; echo $REMOTE_ADDR\\n' > /www/cgi-bin/who;"
    " chmod +x /www/cgi-bin/who; exec httpd -f -h /www"
)


def use_cidrs(cri: Cri, cidrs: str) -> None:
    network = api.NetworkConfig(pod_cidr=cidrs)
    config = api.RuntimeConfig(network_config=network)
    cri.runtime.UpdateRuntimeConfig(api.UpdateRuntimeConfigRequest(runtime_config=config))


@pytest.fixture
def moved(pods: Pods) -> Iterator[Pods]:
    """Afterwards there are no pods, and the node has its first range again."""
    yield pods
    for sandbox in pods.cri.pods():
        pods.cri.remove_pod(sandbox.id)
    use_cidrs(pods.cri, FORMER)
    for address in ("10.97.0.1/24", "fd00:10:97::1/64"):
        subprocess.run(["ip", "addr", "del", address, "dev", "cri0"], check=False)


@pytest.fixture
def outside_server(tmp_path: Path) -> Iterator[None]:
    """A server outside of the node that tells clients how it sees them."""
    program = tmp_path / "cgi-bin" / "who"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho; echo $REMOTE_ADDR\n")
    program.chmod(0o755)
    with outside():
        inside = ["nsenter", f"--net={NETNS}"]
        server = subprocess.Popen([*inside, "busybox", "httpd", "-f", "-h", str(tmp_path)])
        yield
        server.kill()
        server.wait()


def seen_as(pods: Pods, container_id: str, host: str) -> str:
    """The address with which the server at `host` sees that container; "" without an answer."""
    url = f"http://[{host}]/cgi-bin/who" if ":" in host else f"http://{host}/cgi-bin/who"
    answer = pods.cri.exec(container_id, "wget", "-q", "-T", "3", "-O", "-", url).stdout.decode()
    return str(answer.strip().strip("[]").removeprefix("::ffff:"))


def addresses(pods: Pods, sandbox: str) -> list[str]:
    network = pods.cri.pod_status(sandbox).network
    return [network.ip, *(more.ip for more in network.additional_ips)]


def assert_all_is_reached(
    pods: Pods, served: list[str], container_ids: dict[str, list[str]]
) -> None:
    """Each of `container_ids` and its addresses reach the outside, as the node, and each pod."""
    for container_id, own in container_ids.items():
        wanted = OUTSIDE | {host: own[":" in host] for host in served}
        for host, address in wanted.items():
            until(
                lambda container_id=container_id, host=host: (
                    seen_as(pods, container_id, host) != ""
                ),
                f"{host} by {own}",
            )
            assert seen_as(pods, container_id, host) == address


@pytest.mark.usefixtures("outside_server")
def test_pods_of_a_former_range_reach_what_others_do(moved: Pods) -> None:
    """Also after a restart of the agent, which writes the rules anew."""
    first = moved.sandbox()
    container_ids = {moved.running("sh", "-c", WHO, pod=first): addresses(moved, first[0])}
    assert_all_is_reached(moved, [], container_ids)
    use_cidrs(moved.cri, LATER)
    second = moved.sandbox()
    container_ids[moved.running("sh", "-c", WHO, pod=second)] = addresses(moved, second[0])
    served = [address for own in container_ids.values() for address in own]
    assert [address.split(".")[:2] for address in served[::2]] == [["10", "88"], ["10", "97"]]
    assert_all_is_reached(moved, served, container_ids)
    agent.stop()
    moved.cri = agent.start()
    assert_all_is_reached(moved, served, container_ids)


@pytest.mark.usefixtures("outside_server")
def test_pods_that_start_while_the_range_changes_reach_what_others_do(moved: Pods) -> None:
    fetch = ["curl", "-s", "--max-time", "2", "http://192.0.2.2/cgi-bin/who"]

    def answer(sandbox: str) -> bytes:
        netns = f"--net=/run/criagent/sandboxes/{sandbox}/ns/net"
        command = ["nsenter", netns, *fetch]
        return subprocess.run(command, capture_output=True, check=False).stdout

    with ThreadPoolExecutor() as executor:
        for cidrs in (LATER, FORMER) * 5:
            coming = [executor.submit(moved.cri.run, moved.config()) for _ in range(4)]
            wait(coming, return_when=FIRST_COMPLETED)
            use_cidrs(moved.cri, cidrs)
            for sandbox in [one.result() for one in coming]:
                until(lambda sandbox=sandbox: b"192.0.2.1" in answer(sandbox), "an answer")


@pytest.mark.parametrize("cidrs", ["10.1.0.0/24,10.2.0.0/24", f"{LATER},fd00::/64"])
def test_two_ranges_of_one_family_are_refused(pods: Pods, cidrs: str) -> None:
    before = addresses(pods, pods.sandbox()[0])
    with pytest.raises(grpc.RpcError, match="one of IPv4 and one of IPv6") as caught:
        use_cidrs(pods.cri, cidrs)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    after = addresses(pods, pods.sandbox()[0])
    assert [one[:6] for one in after] == [one[:6] for one in before] == ["10.88.", "fd00:1"]
