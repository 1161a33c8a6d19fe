# SPDX-License-Identifier: Apache-2.0
"""What controllers make of pods: Deployments, Jobs, DaemonSets, their beginning and their end."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cluster.cluster import Cluster, Space, restarts
from tests.cluster.ground import Json, eventually, fetch, seconds
from tests.cluster.manifests import container, pod, template, web, workload
from tests.support.cri_client import Cri, api

pytestmark = pytest.mark.timeout(seconds(150))
REPLICAS = 10


def test_the_node_is_ready_and_says_what_runs_it(cluster: Cluster) -> None:
    node = cluster.until_node("True")
    assert node["status"]["nodeInfo"]["containerRuntimeVersion"].startswith("criagent://")
    assert node["spec"]["podCIDR"].startswith("10.244.")
    assert int(node["status"]["allocatable"]["memory"].removesuffix("Ki")) > 0
    names = {name for image in node["status"]["images"] for name in image["names"]}
    assert "registry.k8s.io/e2e-test-images/busybox:1.29-2" in names
    handlers = {one["name"] for one in node["status"]["runtimeHandlers"]}
    assert {"", "crun"} <= handlers


def test_ten_replicas_are_updated_and_taken_back(cluster: Cluster, space: Space) -> None:
    rolling = {"rollingUpdate": {"maxUnavailable": 3, "maxSurge": 3}}
    space.make("deployments", workload("web", web("v1"), replicas=REPLICAS, strategy=rolling))
    space.until("deployments", "web", _all_ready, "ten ready replicas", 90)
    first = _pages(space, "v1")
    address, prefix = cluster.until_node("True")["spec"]["podCIDR"].split("/")
    assert prefix == "24"
    network = address.rpartition(".")[0] + "."
    assert all(ip.startswith(network) for ip in first)

    space.kubectl("set", "env", "deployment/web", "VERSION=v2")
    told = space.kubectl("rollout", "status", "deployment/web", limit_s=90)
    assert "successfully rolled out" in told
    assert not set(first) & set(_pages(space, "v2"))

    space.kubectl("rollout", "undo", "deployment/web")
    space.kubectl("rollout", "status", "deployment/web", limit_s=90)
    _pages(space, "v1")
    space.kubectl("scale", "deployment/web", "--replicas=2")
    space.until_pods("web", lambda pods: len(pods) == 2, "two pods")
    cri = Cri()
    eventually(lambda: len(_ready(cri, space, "web-")) == 2, "the end of the others' sandboxes")
    cri.close()
    space.delete("deployments", "web")


def _all_ready(one: Json) -> bool:
    return bool(one.get("status", {}).get("readyReplicas") == REPLICAS)


def _pages(space: Space, version: str) -> dict[str, str]:
    """Addresses and pages of all live pods, each of which serves its own name and `version`."""
    pods = space.pods("web")
    assert len(pods) == REPLICAS
    pages = {
        one["status"]["podIP"]: fetch(f"http://{one['status']['podIP']}/", limit_s=10)
        for one in pods
    }
    assert sorted(pages.values()) == sorted(
        f"{one['metadata']['name']} {version}\n" for one in pods
    )
    assert [restarts(one) for one in pods] == [0] * REPLICAS
    return pages


def _ready(cri: Cri, space: Space, prefix: str) -> list[str]:
    """Names of the pods that the agent runs; what is left of others goes once a minute."""
    found = [sandbox.metadata for sandbox in cri.pods() if sandbox.state == api.SANDBOX_READY]
    return [
        one.name for one in found if one.namespace == space.name and one.name.startswith(prefix)
    ]


def test_a_job_runs_to_its_end(space: Space) -> None:
    job = template("sum", container("sum", ("sh", "-c", "echo $((40 + 2))")), restartPolicy="Never")
    space.make(
        "jobs",
        {
            "metadata": {"name": "sum"},
            "spec": {"completions": 4, "parallelism": 2, "template": job},
        },
    )
    done = space.until("jobs", "sum", lambda one: _state(one, "Complete"), "completion")
    assert done["status"]["succeeded"] == 4
    pods = space.pods("sum")
    assert [one["status"]["phase"] for one in pods] == ["Succeeded"] * 4
    assert {space.logs(one["metadata"]["name"]) for one in pods} == {"42\n"}
    space.delete("jobs", "sum")


def test_a_job_that_fails_is_tried_again_with_back_off(space: Space) -> None:
    script = "echo x >> /box/tries; [ $(wc -l < /box/tries) = 3 ] || { echo failing >&2; exit 7; }"
    mount = [{"name": "box", "mountPath": "/box"}]
    job = template(
        "stubborn",
        container("main", ("sh", "-c", script), volumeMounts=mount),
        restartPolicy="OnFailure",
        volumes=[{"name": "box", "emptyDir": {}}],
    )
    wanted = {"backoffLimit": 6, "template": job}
    space.make("jobs", {"metadata": {"name": "stubborn"}, "spec": wanted})
    space.until("jobs", "stubborn", lambda one: _state(one, "Complete"), "completion", 90)
    (one,) = space.pods("stubborn")
    (status,) = one["status"]["containerStatuses"]
    assert status["restartCount"] == 2
    assert status["state"]["terminated"]["exitCode"] == 0
    assert status["lastState"]["terminated"]["exitCode"] == 7
    assert status["lastState"]["terminated"]["reason"] == "Error"

    job = template("hopeless", container("main", ("false",)), restartPolicy="Never")
    wanted = {"backoffLimit": 0, "template": job}
    space.make("jobs", {"metadata": {"name": "hopeless"}, "spec": wanted})
    failed = space.until("jobs", "hopeless", lambda one: _state(one, "Failed"), "failure")
    assert failed["status"]["failed"] == 1
    space.delete("jobs", "stubborn")
    space.delete("jobs", "hopeless")


def _state(one: Json, kind: str) -> bool:
    conditions = one.get("status", {}).get("conditions", ())
    return any(condition["type"] == kind for condition in conditions)


def test_a_daemon_set_has_a_pod_on_the_node(cluster: Cluster, space: Space) -> None:
    space.make("daemonsets", workload("each", web("v1")))
    space.until("daemonsets", "each", _ready_on_one, "a ready pod")
    (first,) = space.pods("each")
    assert first["spec"]["nodeName"] == cluster.node
    space.kubectl("set", "env", "daemonset/each", "VERSION=v2")
    space.kubectl("rollout", "status", "daemonset/each")
    (second,) = space.pods("each")
    assert fetch(f"http://{second['status']['podIP']}/", limit_s=10).endswith(" v2\n")
    space.kubectl("delete", "daemonset", "each")
    space.until_pods("each", lambda pods: not pods, "the end")


def _ready_on_one(one: Json) -> bool:
    status = one.get("status", {})
    return bool(status.get("numberReady") == status.get("desiredNumberScheduled") == 1)


def test_a_deleted_pod_has_its_time_to_end(space: Space, tmp_path: Path) -> None:
    script = 'trap "echo term >> /box/end; sleep 1; echo bye >> /box/end; exit 0" TERM'
    hook = {"preStop": {"exec": {"command": ["sh", "-c", "echo hook >> /box/end"]}}}
    main = container(
        "main",
        ("sh", "-c", f"{script}; while :; do sleep 0.1; done"),
        volumeMounts=[{"name": "box", "mountPath": "/box"}],
        lifecycle=hook,
    )
    volumes = [{"name": "box", "hostPath": {"path": str(tmp_path)}}]
    space.make("pods", pod("polite", main, volumes=volumes, terminationGracePeriodSeconds=300))
    space.until_ready("polite")
    space.kubectl("delete", "pod", "polite")
    assert (tmp_path / "end").read_text() == "hook\nterm\nbye\n"


def test_a_pod_that_does_not_end_is_killed_in_time(space: Space) -> None:
    deaf = container("main", ("sh", "-c", 'trap "" TERM; while :; do sleep 0.1; done'))
    space.make("pods", pod("deaf", deaf, terminationGracePeriodSeconds=1))
    space.until_ready("deaf")
    space.kubectl("delete", "pod", "deaf")
    space.until_gone("deaf")
    cri = Cri()
    eventually(lambda: not _ready(cri, space, "deaf"), "the end of its sandbox")
    cri.close()
