# SPDX-License-Identifier: Apache-2.0
"""Resources of a running pod change in place (KEP-1287): the kernel has them, nothing restarts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cluster.cluster import Cluster, Space, restarts
from tests.cluster.ground import IN_VM, Json, eventually, seconds
from tests.cluster.manifests import container, pod

pytestmark = pytest.mark.timeout(seconds(150))
_CGROUPS = Path("/sys/fs/cgroup")


def _files(wanted: dict[str, str]) -> dict[str, str]:
    """What the container's and the pod's cgroups must say."""
    quota = int(wanted["cpu"].removesuffix("m")) * 100
    limit = int(wanted["memory"].removesuffix("Mi")) << 20
    return {"cpu.max": f"{quota} 100000", "memory.max": str(limit)}


def test_limits_of_a_running_pod_are_changed(cluster: Cluster, space: Space) -> None:
    if not IN_VM:
        pytest.skip("the test node has no controllers; the VM has")
    del cluster
    first, second = {"cpu": "300m", "memory": "48Mi"}, {"cpu": "600m", "memory": "96Mi"}
    space.make("pods", pod("grows", container("main", resources={"limits": first})))
    made = space.until_ready("grows")
    uid = made["metadata"]["uid"].replace("-", "_")
    (pod_cgroup,) = (_CGROUPS / "kubepods.slice").rglob(f"kubepods*pod{uid}.slice")
    (scope,) = pod_cgroup.glob("cri-*.scope")

    def says(cgroup: Path) -> dict[str, str]:
        return {name: (cgroup / name).read_text().strip() for name in _files(first)}

    assert says(scope) == says(pod_cgroup) == _files(first)
    resources = {"requests": second, "limits": second}
    change = {"spec": {"containers": [{"name": "main", "resources": resources}]}}
    patch = json.dumps(change)
    space.kubectl("patch", "pod", "grows", "--subresource=resize", "--patch", patch)
    eventually(lambda: says(scope) == says(pod_cgroup) == _files(second), "the new limits", 60)

    def told(one: Json) -> bool:
        (status,) = one["status"]["containerStatuses"]
        return bool(status.get("resources", {}).get("limits") == second)

    after = space.until("pods", "grows", told, "its new limits in the status")
    assert restarts(after) == 0
    assert _ids(after) == _ids(made)
    space.delete("pods", "grows")


def _ids(one: Json) -> list[str]:
    return [status["containerID"] for status in one["status"]["containerStatuses"]]
