# SPDX-License-Identifier: Apache-2.0
# vm: seconds=690
"""A kubelet on criagent: its cgroups, and what every pod needs; nobody notices a killed agent.

Most of what pods can ask for is in test_kubelet_features and, whole, in full/test_kubelet_all.
"""

from __future__ import annotations

import urllib.request
from pathlib import Path

from tests.kubelet.test_pods import (
    test_a_pod_without_the_hosts_users,
    test_init_and_sidecar_containers_run_in_their_order,
)
from tests.support.cri_client import Cri
from tests.support.kubelet_fixtures import (
    host_directory,
    images,
    kubelet,
    nothing_leaks,
    session_kubelet,
)
from tests.support.kubelet_node import Json, Kubelet, ground, ids, restarts, shell, sleeper, states
from tests.support.units import show

__all__ = [
    "host_directory",
    "images",
    "kubelet",
    "nothing_leaks",
    "session_kubelet",
    "test_a_pod_without_the_hosts_users",
    "test_init_and_sidecar_containers_run_in_their_order",
]
KUBEPODS = Path("/sys/fs/cgroup/kubepods.slice")


def test_a_static_pod_runs_with_probe_and_hook(kubelet: Kubelet) -> None:
    kubelet.add(
        "web",
        {
            "containers": [
                {
                    "name": "web",
                    "command": ["sh", "-c", "mkdir -p /www; echo hi > /www/x; httpd -f -h /www"],
                    "lifecycle": {"postStart": {"exec": {"command": ["touch", "/started"]}}},
                    "readinessProbe": {
                        "exec": {"command": ["test", "-e", "/started"]},
                        "timeoutSeconds": 20,
                    },
                    "livenessProbe": {
                        "httpGet": {"path": "/x", "port": 80},
                        "timeoutSeconds": 20,
                        "periodSeconds": 5,
                    },
                    "resources": {
                        "requests": {"cpu": "100m", "memory": "32Mi"},
                        "limits": {"cpu": "500m", "memory": "64Mi"},
                    },
                }
            ]
        },
    )
    pod = kubelet.until_ready("web")
    assert restarts(pod) == {"web": 0}
    container_id = ids(pod)["web"].removeprefix("criagent://")
    uid = pod["metadata"]["uid"].replace("-", "_")
    slice_name = f"kubepods-burstable-pod{uid}.slice"
    assert show(f"cri-{container_id}.scope", "Slice") == slice_name
    scope = Path("/sys/fs/cgroup/kubepods.slice/kubepods-burstable.slice", slice_name)
    assert (scope / f"cri-{container_id}.scope/memory.max").read_text().strip() == str(64 << 20)
    with urllib.request.urlopen(f"http://{pod['status']['podIP']}/x", timeout=60) as answer:
        assert answer.read() == b"hi\n"


def test_resources_of_every_class_are_the_kernels(kubelet: Kubelet) -> None:
    exact = {"cpu": "200m", "memory": "64Mi", "ephemeral-storage": "1Gi"}
    pods: dict[str, Json] = {
        "guaranteed": {"containers": [sleeper("main", resources={"limits": exact})]},
        "burstable": {"containers": [sleeper("main", resources={"requests": {"cpu": "250m"}})]},
        "besteffort": {"containers": [sleeper("main")]},
        "together": {
            "resources": {"limits": {"cpu": "300m", "memory": "96Mi"}},
            "containers": [sleeper("main"), sleeper("other")],
        },
    }
    for name, spec in pods.items():
        kubelet.add(name, spec)
    scopes = {name: _scope(kubelet.until_ready(name)) for name in pods}
    assert _read(scopes["guaranteed"], "cpu.max") == "20000 100000"
    assert _read(scopes["guaranteed"], "memory.max") == str(64 << 20)
    assert _read(scopes["guaranteed"].parent, "memory.max") == str(64 << 20)
    assert _read(scopes["burstable"], "cpu.max") == "max 100000"
    weights = {name: int(_read(scope, "cpu.weight")) for name, scope in scopes.items()}
    assert weights["burstable"] > weights["guaranteed"] > weights["besteffort"]
    assert _read(scopes["besteffort"], "memory.max") == "max"
    assert _read(scopes["together"].parent, "cpu.max") == "30000 100000"
    assert _read(scopes["together"].parent, "memory.max") == str(96 << 20)
    assert scopes["guaranteed"].parent.parent == KUBEPODS
    assert scopes["burstable"].parent.parent.name == "kubepods-burstable.slice"
    assert scopes["besteffort"].parent.parent.name == "kubepods-besteffort.slice"
    scores = {name: int(_of_init(scope, "oom_score_adj")) for name, scope in scopes.items()}
    assert scores["guaranteed"] == -997
    assert scores["besteffort"] == 1000
    kubelet.remove(*pods)


def test_a_container_out_of_memory_says_so(kubelet: Kubelet) -> None:
    hungry = "head -c 200000000 /dev/zero | tail -c 150000000 | wc -c"
    limits = {"limits": {"memory": "32Mi"}}
    spec = {"restartPolicy": "Never", "containers": [shell("main", hungry, resources=limits)]}
    kubelet.add("hungry", spec)
    pod = kubelet.until(
        "hungry", lambda pod: "terminated" in states(pod).get("main", {}), "its end"
    )
    assert states(pod)["main"]["terminated"]["reason"] == "OOMKilled"
    kubelet.remove("hungry")


def test_an_agent_killed_again_and_again_restarts_no_container(kubelet: Kubelet) -> None:
    before = kubelet.until_ready("web")
    for _ in range(3):
        ground.kill_agent()
    cri = Cri()
    cri.pods()
    cri.close()
    after = kubelet.until_ready("web")
    assert ids(after) == ids(before)
    assert restarts(after) == restarts(before)
    with urllib.request.urlopen(f"http://{after['status']['podIP']}/x", timeout=60) as answer:
        assert answer.read() == b"hi\n"


def _scope(pod: Json) -> Path:
    """The cgroup of its container "main"."""
    name = f"cri-{ids(pod)['main'].removeprefix('criagent://')}.scope"
    (found,) = KUBEPODS.rglob(name)
    return found


def _read(cgroup: Path, file: str) -> str:
    return (cgroup / file).read_text().strip()


def _of_init(scope: Path, file: str) -> str:
    (pid, *_) = (scope / "container/cgroup.procs").read_text().split()
    return Path(f"/proc/{pid}/{file}").read_text()
