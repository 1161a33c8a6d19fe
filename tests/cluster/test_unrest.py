# SPDX-License-Identifier: Apache-2.0
"""What comes from outside: evictions, a drained node, an agent that is stopped or killed."""

from __future__ import annotations

from typing import Any

import pytest

from tests.cluster.api_client import ApiError, path_of
from tests.cluster.cluster import Cluster, Space, restarts
from tests.cluster.ground import Json, fetch, seconds
from tests.cluster.manifests import container, pod, web, workload
from tests.support.cri_client import Cri, api

pytestmark = pytest.mark.timeout(seconds(150))


def _ready(count: int) -> Any:
    def holds(one: Json) -> bool:
        return bool(one.get("status", {}).get("readyReplicas", 0) == count)

    return holds


def test_a_pod_is_evicted_when_its_budget_allows(space: Space) -> None:
    space.make("deployments", workload("kept", container("main"), replicas=2))
    space.until("deployments", "kept", _ready(2), "two ready replicas")
    selector = {"matchLabels": {"app": "kept"}}
    budget = {"metadata": {"name": "kept"}, "spec": {"minAvailable": 2, "selector": selector}}
    space.make("poddisruptionbudgets", budget)
    space.until(
        "poddisruptionbudgets", "kept", lambda one: _healthy(one) == 2, "the budget's first count"
    )
    name = space.pods("kept")[0]["metadata"]["name"]
    path = f"{path_of('pods', space.name, name)}/eviction"
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}}
    with pytest.raises(ApiError, match="disruption budget") as refused:
        space.api.post(path, eviction)
    assert refused.value.status == 429
    space.delete("poddisruptionbudgets", "kept")
    space.api.post(path, eviction)
    space.until_gone(name)
    space.until("deployments", "kept", _ready(2), "two ready replicas")
    assert name not in {one["metadata"]["name"] for one in space.pods("kept")}
    space.delete("deployments", "kept")


def _healthy(one: Json) -> int:
    return int(one.get("status", {}).get("currentHealthy", 0))


def test_pods_live_on_while_the_agent_is_stopped(cluster: Cluster, space: Space) -> None:
    space.make("pods", pod("steady", web()))
    before = space.until_ready("steady")
    url = f"http://{before['status']['podIP']}/"
    cluster.ground.stop_agent()
    try:
        cluster.until_node("False", 120)
        assert fetch(url, limit_s=10) == "steady v1\n"
    finally:
        cluster.ground.start_agent()
    cluster.until_node("True")
    after = space.until_ready("steady")
    assert _identity(after) == _identity(before)
    assert fetch(url, limit_s=10) == "steady v1\n"
    assert space.exec("steady", "hostname") == "steady\n"


def _identity(one: Json) -> list[tuple[str, str, int]]:
    return [
        (each["name"], each["containerID"], each["restartCount"])
        for each in one["status"]["containerStatuses"]
    ]


def test_an_agent_killed_amid_a_rollout(cluster: Cluster, space: Space) -> None:
    space.make("pods", pod("bystander", web()))
    before = space.until_ready("bystander")
    rolling = {"rollingUpdate": {"maxUnavailable": 2, "maxSurge": 2}}
    space.make("deployments", workload("tide", web("v1"), replicas=6, strategy=rolling))
    space.until("deployments", "tide", _ready(6), "six ready replicas")
    space.kubectl("set", "env", "deployment/tide", "VERSION=v2")
    ready: dict[str, Any] = {}
    for count in (1, 3, 5):
        space.until("deployments", "tide", _updated(count), f"{count} new pods")
        ready |= {one["metadata"]["name"]: _identity(one) for one in _all_ready(space, "tide")}
        cluster.ground.kill_agent()
    told = space.kubectl("rollout", "status", "deployment/tide", limit_s=100)
    assert "successfully rolled out" in told
    pods = space.pods("tide")
    assert len(pods) == 6
    for one in pods:
        # A container whose start was cut off may be made once more, none that ran.
        assert ready.get(one["metadata"]["name"], _identity(one)) == _identity(one)
        assert restarts(one) <= 3
        assert (
            fetch(f"http://{one['status']['podIP']}/", limit_s=10)
            == f"{one['metadata']['name']} v2\n"
        )
    space.until_pods("tide", lambda found: len(found) == 6, "the end of the old pods")
    assert _identity(space.get("pods", "bystander")) == _identity(before)
    cri = Cri()
    sandboxes = [
        sandbox.metadata.name for sandbox in cri.pods() if sandbox.state == api.SANDBOX_READY
    ]
    cri.close()
    names = sorted(one["metadata"]["name"] for one in pods)
    assert sorted(name for name in sandboxes if name.startswith("tide-")) == names
    space.delete("deployments", "tide")


def _all_ready(space: Space, app: str) -> list[Json]:
    return [
        one
        for one in space.pods(app)
        if all(each["ready"] for each in one["status"].get("containerStatuses", [{"ready": False}]))
    ]


def _updated(count: int) -> Any:
    def holds(one: Json) -> bool:
        return bool(one.get("status", {}).get("updatedReplicas", 0) >= count)

    return holds


def test_the_node_is_drained_and_taken_back(cluster: Cluster, space: Space) -> None:
    space.make("deployments", workload("moved", web(), replicas=3))
    space.make("daemonsets", workload("resident", container("main")))
    space.until("deployments", "moved", _ready(3), "three ready replicas")
    space.until_pods("resident", lambda pods: len(pods) == 1, "the daemon")
    old = {one["metadata"]["name"] for one in space.pods("moved")}
    told = cluster.kubectl(
        "drain", cluster.node, "--ignore-daemonsets", "--delete-emptydir-data", "--force",
        f"--timeout={seconds(60):.0f}s", limit_s=70,
    )  # fmt: skip
    assert "drained" in told
    waiting = space.pods("moved")
    assert not old & {one["metadata"]["name"] for one in waiting}
    assert {one["status"]["phase"] for one in waiting} == {"Pending"}
    (resident,) = space.pods("resident")
    cri = Cri()
    sandboxes = {
        sandbox.metadata.name for sandbox in cri.pods() if sandbox.state == api.SANDBOX_READY
    }
    cri.close()
    assert sandboxes & old == set()
    assert resident["metadata"]["name"] in sandboxes
    cluster.kubectl("uncordon", cluster.node)
    space.until("deployments", "moved", _ready(3), "three ready replicas")
