"""A kubelet on criagent: static pods with what pods can ask for; nobody notices a killed agent.

The pods live side by side from the first test to the last: starting them takes most of the time.
"""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from cri_client import Cri
from kubelet_node import LIMIT_S, MANIFESTS, Kubelet, ids, restarts
from node_state import differences, settled_state
from units import failed_units, kill_agent, main_pid, pod_slices, show, systemctl
from waiting import until

SLEEP = ["sleep", "1000000"]


@pytest.fixture(autouse=True)
def nothing_leaks() -> None:
    """Replaced by what `kubelet` does: its pods outlive a test."""


@pytest.fixture(scope="module")
def kubelet(images: None) -> Iterator[Kubelet]:
    """A kubelet for all tests here; afterwards the node is as it was."""
    cri = Cri()
    before = {**settled_state(cri), "failed": failed_units()}
    service = Kubelet()
    service.start()
    yield service
    for manifest in MANIFESTS.iterdir():
        manifest.unlink()
    until(lambda: not service.pods(), "the end of all pods", LIMIT_S)
    until(lambda: not cri.pods(), "the removal of all sandboxes", LIMIT_S)
    service.stop()
    for name in pod_slices():
        systemctl("stop", name)
    after = {**settled_state(cri), "failed": failed_units()}
    # The kubelet's own: its state and its mark in the firewall.
    for state in (before, after):
        state["mounts"] = [line for line in state["mounts"] if "/var/lib/kubelet" not in line]
        state["nftables"] = [line for line in state["nftables"] if "criagent" in line]
    assert differences(before, after) == ""


def test_a_static_pod_runs_with_probe_and_hook(kubelet: Kubelet) -> None:
    kubelet.add(
        "web",
        {
            "containers": [
                {
                    "name": "web",
                    "command": ["sh", "-c", "mkdir -p /www; echo hi > /www/x; httpd -f -h /www"],
                    "lifecycle": {"postStart": {"exec": {"command": ["touch", "/started"]}}},
                    "readinessProbe": {"exec": {"command": ["test", "-e", "/started"]}},
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


def test_an_agent_killed_again_and_again_restarts_no_container(kubelet: Kubelet) -> None:
    before = kubelet.until_ready("web")
    for _ in range(3):
        killed = kill_agent()
        until(
            lambda gone=killed: (
                main_pid("criagent") not in {0, gone}  # type: ignore[misc]
                and show("criagent", "ActiveState") == "active"
            ),
            "the next agent",
            LIMIT_S,
        )
    cri = Cri()
    cri.pods()
    cri.close()
    after = kubelet.until_ready("web")
    assert ids(after) == ids(before)
    assert restarts(after) == restarts(before)
    with urllib.request.urlopen(f"http://{after['status']['podIP']}/x", timeout=60) as answer:
        assert answer.read() == b"hi\n"
