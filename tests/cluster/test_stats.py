# SPDX-License-Identifier: Apache-2.0
"""What `kubectl top` is made of: the kubelet's summary and its resource metrics."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.cluster.cluster import Cluster, Space
from tests.cluster.ground import IN_VM, Json, eventually, seconds
from tests.cluster.manifests import container, pod

pytestmark = pytest.mark.timeout(seconds(150))
_BUSY = "dd if=/dev/zero of=/box/data bs=1M count=8 2>/dev/null; while :; do :; done"
_CGROUPS = Path("/sys/fs/cgroup")


@pytest.fixture(scope="module")
def busy(space: Space) -> str:
    """A pod that uses a processor, and has written 8 MiB."""
    main = container(
        "main",
        ("sh", "-c", _BUSY),
        volumeMounts=[{"name": "box", "mountPath": "/box"}],
        resources={"limits": {"cpu": "200m", "memory": "64Mi"}} if IN_VM else {},
    )
    space.make("pods", pod("busy", main, volumes=[{"name": "box", "emptyDir": {}}]))
    space.until_ready("busy")
    return "busy"


def _summary(cluster: Cluster, name: str) -> Json:
    pods = json.loads(cluster.kubelet("stats/summary"))["pods"]
    found: Json = next((one for one in pods if one["podRef"]["name"] == name), {})
    return found


def test_the_summary_has_the_pod(cluster: Cluster, space: Space, busy: str) -> None:
    def complete() -> bool:
        one = _summary(cluster, busy)
        volumes = {volume["name"]: volume.get("usedBytes", 0) for volume in one.get("volume", ())}
        return volumes.get("box", 0) >= 8 << 20 and bool(one.get("containers"))

    try:
        eventually(complete, "figures of the volume", 120)
    except AssertionError:
        print(json.dumps(_summary(cluster, busy)))
        raise
    one = _summary(cluster, busy)
    assert one["podRef"]["namespace"] == space.name
    (main,) = one["containers"]
    assert main["name"] == "main"
    assert main["logs"]["capacityBytes"] > 0
    assert main["rootfs"]["usedBytes"] >= 0
    assert one["ephemeral-storage"]["usedBytes"] >= 8 << 20


def test_usage_is_that_of_the_cgroup(cluster: Cluster, space: Space, busy: str) -> None:
    if not IN_VM:
        pytest.skip("the test node has no controllers; the VM has")
    uid = space.get("pods", busy)["metadata"]["uid"].replace("-", "_")
    (cgroup,) = (_CGROUPS / "kubepods.slice").rglob(f"kubepods*pod{uid}.slice")
    eventually(
        lambda: _summary(cluster, busy).get("cpu", {}).get("usageCoreNanoSeconds", 0) > 1e9,
        "a second of CPU",
    )

    def used() -> int:
        text = (cgroup / "cpu.stat").read_text()
        return int(text.split()[1]) * 1000

    before = used()
    one = _summary(cluster, busy)

    def fresh() -> bool:
        nonlocal one
        one = _summary(cluster, busy)
        return bool(one["cpu"]["usageCoreNanoSeconds"] >= before)

    eventually(fresh, "figures that are newer", 60)
    assert one["cpu"]["usageCoreNanoSeconds"] <= used()
    assert 0 < one["memory"]["workingSetBytes"] <= 64 << 20
    memory = int((cgroup / "memory.current").read_text())
    assert abs(one["memory"]["usageBytes"] - memory) < 16 << 20
    (main,) = one["containers"]
    assert 0 < main["cpu"]["usageNanoCores"] < 4e8


def test_resource_metrics_name_the_pod(cluster: Cluster, space: Space, busy: str) -> None:
    place = f'namespace="{space.name}",pod="{busy}"'

    def value(name: str, labels: str) -> float:
        found = re.search(
            rf"^{name}{{{re.escape(labels)}}} (\S+)",
            cluster.kubelet("metrics/resource"),
            re.MULTILINE,
        )
        return float(found[1]) if found else -1

    started = f'container="main",{place}'
    eventually(lambda: value("container_start_time_seconds", started) > 0, "its start")
    if IN_VM:
        eventually(lambda: value("pod_cpu_usage_seconds_total", place) > 1, "its CPU time")
        eventually(lambda: value("container_cpu_usage_seconds_total", started) > 1, "CPU time")
        assert 0 < value("pod_memory_working_set_bytes", place) <= 64 << 20
        assert 0 < value("container_memory_working_set_bytes", started) <= 64 << 20
