# SPDX-License-Identifier: Apache-2.0
"""Services through kube-proxy in both of its modes, hostPorts, and the way to the API server."""

from __future__ import annotations

import json

import pytest

from tests.cluster.cluster import Cluster, Space
from tests.cluster.ground import Json, eventually, fetch, seconds
from tests.cluster.manifests import pod, service, web, workload

pytestmark = pytest.mark.timeout(seconds(150))


@pytest.fixture(scope="module")
def backends(space: Space) -> list[str]:
    """Names of two pods that serve pages."""
    space.make("deployments", workload("pages", web(), replicas=2))
    space.until("deployments", "pages", lambda one: _ready(one) == 2, "two ready replicas")
    space.make("pods", pod("client"))
    space.until_ready("client")
    return sorted(one["metadata"]["name"] for one in space.pods("pages"))


def _ready(one: Json) -> int:
    return int(one.get("status", {}).get("readyReplicas", 0))


@pytest.fixture(scope="module", params=["nftables", "iptables"])
def mode(cluster: Cluster, request: pytest.FixtureRequest) -> str:
    """The mode that kube-proxy runs in."""
    cluster.set_proxy(str(request.param))
    return str(request.param)


def test_a_service_is_reached_by_its_cluster_ip(
    cluster: Cluster, space: Space, backends: list[str], mode: str
) -> None:
    name = "pages"
    made = space.make("services", service(name, type="NodePort"))
    address = made["spec"]["clusterIP"]
    port = made["spec"]["ports"][0]["nodePort"]
    node = cluster.ground.address
    try:
        for what, look in {
            "from the node": lambda: fetch(f"http://{address}/"),
            "from a pod": lambda: _from(space, "client", f"http://{address}/"),
            "by the node port, from beside": lambda: fetch(f"http://{node}:{port}/", beside=True),
            "by the node port, from a pod": lambda: _from(
                space, "client", f"http://{node}:{port}/"
            ),
            "by the node port, from the node": lambda: fetch(f"http://{node}:{port}/"),
        }.items():
            seen: set[str] = set()

            def both(look=look, seen=seen) -> bool:  # type: ignore[no-untyped-def]  # noqa: ANN001
                seen.add(look().partition(" ")[0])
                return sorted(seen - {""}) == backends

            eventually(both, f"both pods {what}, mode {mode}")
        # A pod that is its own backend: the answer must come back over the bridge's same port.
        seen = set()

        def itself() -> bool:
            seen.add(_from(space, backends[0], f"http://{address}/").partition(" ")[0])
            return backends[0] in seen

        eventually(itself, f"a pod that reaches itself, mode {mode}")
        space.patch("services", name, {"spec": {"selector": {"app": "nobody"}}})
        eventually(lambda: fetch(f"http://{address}/") == "", "no answer without pods")
    finally:
        space.delete("services", name)


def _from(space: Space, name: str, url: str) -> str:
    """A page that a pod gets; "" when there is none."""
    wget = ["wget", "-q", "-T", f"{seconds(2):.0f}", "-O", "-", url]
    return str(space.kubectl("exec", name, "--", *wget, check=False))


def test_a_pod_reaches_the_api_server_by_its_service(
    space: Space, backends: list[str], mode: str
) -> None:
    assert backends
    assert mode
    script = (
        f"wget -q -T {seconds(5):.0f} -O - --no-check-certificate "
        "https://$KUBERNETES_SERVICE_HOST:$KUBERNETES_SERVICE_PORT/version"
    )
    told: list[str] = []

    def answered() -> bool:
        told.append(space.kubectl("exec", "client", "--", "sh", "-c", script, check=False))
        return bool(told[-1])

    eventually(answered, "an answer")
    assert json.loads(told[-1])["gitVersion"] == "v1.36.3"


def test_host_ports_beside_services(
    cluster: Cluster, space: Space, backends: list[str], mode: str
) -> None:
    assert backends
    container = web(ports=[{"containerPort": 80, "hostPort": 8081}])
    space.make("pods", pod("hosted", container))
    try:
        space.until_ready("hosted")
        url = f"http://{cluster.ground.address}:8081/"
        for what, look in {
            "from beside": lambda: fetch(url, beside=True),
            "from the node": lambda: fetch(url),
            "by localhost": lambda: fetch("http://127.0.0.1:8081/"),
            "from a pod": lambda: _from(space, "client", url),
            "from itself": lambda: _from(space, "hosted", url),
        }.items():
            eventually(
                lambda look=look: look() == "hosted v1\n",
                f"the page {what}, mode {mode}",
            )
    finally:
        space.delete("pods", "hosted")
        space.until_gone("hosted")
    assert fetch(url) == ""
