# SPDX-License-Identifier: Apache-2.0
"""Two feature gates that make the kubelet rely on the runtime alone: statistics and events."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cri_client import Cri, api
from tests.support.kubelet_node import (
    IN_VM,
    LIMIT_S,
    NODE,
    PROBE_S,
    Json,
    Kubelet,
    ground,
    ids,
    ready,
    restarts,
    shell,
    states,
    until,
)

GATES = {"PodAndContainerStatsFromCRI": True, "EventedPLEG": True}
_CONNECTIONS = "kubelet_evented_pleg_connection_success_count"
_EVENTS = "kubelet_evented_pleg_connection_latency_seconds_count"
_WAITING = "while [ ! -e /box/end ]; do sleep 0.1; done; rm /box/end; exit 5"


@pytest.fixture(scope="module")
def gated(kubelet: Kubelet) -> Iterator[Kubelet]:
    """The kubelet with both gates."""
    kubelet.restart(featureGates=GATES)
    yield kubelet
    kubelet.remove()
    kubelet.restart()


def test_statistics_are_the_runtimes(gated: Kubelet) -> None:
    script = "head -c 1500000 /dev/zero > /x; i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done"
    gated.add("busy", {"containers": [shell("main", f"{script}; exec sleep 1000000")]})
    container_id = ids(gated.until_ready("busy"))["main"].removeprefix("criagent://")
    cgroup = _cgroup(container_id)

    def agree() -> bool:
        before, pod, after = _usage(cgroup), _summary(gated, "busy"), _usage(cgroup)
        (main,) = pod["containers"]
        seen = {"cpu": main["cpu"]["usageCoreNanoSeconds"] // 1000}
        if IN_VM:
            seen["memory"] = main["memory"]["usageBytes"]
            assert main["memory"]["workingSetBytes"] <= seen["memory"]
        return all(before[key] <= value <= after[key] for key, value in seen.items())

    until(agree, "figures as the cgroup's", LIMIT_S)

    def written() -> int:
        return int(_summary(gated, "busy")["containers"][0]["rootfs"]["usedBytes"])

    until(lambda: 1500000 <= written() < 3000000, "what it has written", LIMIT_S)
    pod = _summary(gated, "busy")
    assert pod["network"]["name"] == "eth0"
    assert pod["process_stats"]["process_count"] >= 1
    metrics = gated.text("/metrics/cadvisor")
    (line,) = re.findall(
        rf'^container_cpu_usage_seconds_total{{.*id="{container_id}".*$', metrics, re.MULTILINE
    )
    assert f'namespace="default",pod="busy-{NODE}"' in line
    assert 'id="/' not in metrics  # cgroups, as cAdvisor names containers


def test_events_tell_of_an_end_and_of_probes(gated: Kubelet, host_directory: Path) -> None:
    gated.restart(featureGates=GATES)  # an agent that was restarted may have made it list for good
    until(lambda: _metric(gated, _CONNECTIONS) >= 1, "a connection", LIMIT_S)
    volumes = [{"name": "box", "hostPath": {"path": str(host_directory)}}]
    mounted: Json = {"volumeMounts": [{"name": "box", "mountPath": "/box"}]}
    probe = {"exec": {"command": ["test", "-e", "/box/fine"]}, "timeoutSeconds": PROBE_S}
    gated.add(
        "probed",
        {
            "volumes": volumes,
            "containers": [
                shell("main", _WAITING, readinessProbe={**probe, "periodSeconds": 1}, **mounted)
            ],
        },
    )
    gated.until("probed", lambda pod: "running" in states(pod).get("main", {}), "its start")
    (host_directory / "fine").touch()
    gated.until_ready("probed")
    events = _metric(gated, _EVENTS)
    (host_directory / "end").touch()
    gated.until("probed", lambda pod: restarts(pod)["main"] == 1 and ready(pod), "a restart")
    assert _metric(gated, _EVENTS) >= events + 3  # stopped, created, started


def test_events_go_on_after_a_restart_of_the_agent(gated: Kubelet, host_directory: Path) -> None:
    mounted: Json = {"volumeMounts": [{"name": "box", "mountPath": "/box"}]}
    spec: Json = {
        "restartPolicy": "Never",
        "volumes": [{"name": "box", "hostPath": {"path": str(host_directory)}}],
        "containers": [shell("main", _WAITING, **mounted)],
    }
    gated.add("ending", spec)
    gated.until_ready("ending")
    ground.restart_agent()
    (host_directory / "end").touch()
    gated.until("ending", lambda pod: pod["status"]["phase"] == "Failed", "its end")
    gated.remove("ending")


def _cgroup(container_id: str) -> Path:
    cri = Cri()
    request = api.ContainerStatusRequest(container_id=container_id, verbose=True)
    pid = json.loads(cri.runtime.ContainerStatus(request).info["info"])["pid"]
    cri.close()
    return Path("/sys/fs/cgroup", Path(f"/proc/{pid}/cgroup").read_text().split("0::/")[1].strip())


def _usage(cgroup: Path) -> dict[str, int]:
    usage = {"cpu": int((cgroup / "cpu.stat").read_text().split()[1])}
    if IN_VM:
        usage["memory"] = int((cgroup / "memory.current").read_text())
    return usage


def _summary(kubelet: Kubelet, name: str) -> Json:
    pods = kubelet.get("/stats/summary")["pods"]
    return next(pod for pod in pods if pod["podRef"]["name"] == f"{name}-{NODE}")


def _metric(kubelet: Kubelet, name: str) -> float:
    (value,) = re.findall(rf"^{name} (\S+)$", kubelet.text("/metrics"), re.MULTILINE)
    return float(value)
