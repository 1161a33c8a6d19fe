# vm: seconds=690
"""A kubelet on criagent: static pods with what pods can ask for; nobody notices a killed agent.

The pods live side by side from the first test to the last: starting them takes most of the time.
"""

from __future__ import annotations

import shutil
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from cri_client import Cri
from kubelet_node import LIMIT_S, MANIFESTS, Json, Kubelet, ids, restarts
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


def test_init_and_sidecar_containers_run_in_their_order(kubelet: Kubelet) -> None:
    kubelet.add(
        "init",
        {
            "volumes": [{"name": "box", "emptyDir": {}}],
            "initContainers": [
                {
                    "name": "first",
                    "command": ["sh", "-c", "echo first > /box/order"],
                    "volumeMounts": [{"name": "box", "mountPath": "/box"}],
                },
                {
                    "name": "sidecar",
                    "command": ["sh", "-c", "echo sidecar >> /box/order; exec sleep 1000000"],
                    "restartPolicy": "Always",
                    "startupProbe": {
                        "exec": {"command": ["grep", "sidecar", "/box/order"]},
                        "timeoutSeconds": 20,
                        "periodSeconds": 2,
                    },
                    "volumeMounts": [{"name": "box", "mountPath": "/box"}],
                },
            ],
            "containers": [
                {
                    "name": "main",
                    "command": ["sh", "-c", "echo main >> /box/order; exec sleep 1000000"],
                    "volumeMounts": [{"name": "box", "mountPath": "/box"}],
                }
            ],
        },
    )
    pod = kubelet.until_ready("init")
    assert restarts(pod) == {"main": 0, "first": 0, "sidecar": 0}
    assert _exec(pod, "main", "cat", "/box/order") == "first\nsidecar\nmain\n"


def test_a_failing_container_is_restarted_and_its_message_kept(kubelet: Kubelet) -> None:
    failing = "echo why > /dev/termination-log; exit 3"
    kubelet.add(
        "crash",
        {
            "containers": [
                {
                    "name": "crash",
                    "command": ["sh", "-c", failing],
                }
            ]
        },
    )
    kubelet.until("crash", lambda pod: restarts(pod).get("crash", 0) >= 2, "two restarts")
    status = kubelet.statuses("crash")["crash"]
    last = status["lastState"].get("terminated") or status["state"]["terminated"]
    assert (last["exitCode"], last["reason"], last["message"]) == (3, "Error", "why\n")
    kubelet.remove("crash")


def test_termination_is_graceful_with_its_hook(kubelet: Kubelet, tmp_path: Path) -> None:
    writing = "trap 'echo term >> /box/end; exit 0' TERM; while :; do sleep 0.2; done"
    kubelet.add(
        "graceful",
        {
            "terminationGracePeriodSeconds": 60,
            "volumes": [{"name": "box", "hostPath": {"path": str(tmp_path)}}],
            "containers": [
                {
                    "name": "graceful",
                    "command": ["sh", "-c", writing],
                    "lifecycle": {
                        "preStop": {"exec": {"command": ["sh", "-c", "echo hook >> /box/end"]}}
                    },
                    "volumeMounts": [{"name": "box", "mountPath": "/box"}],
                }
            ],
        },
    )
    kubelet.until_ready("graceful")
    kubelet.remove("graceful")
    assert (tmp_path / "end").read_text() == "hook\nterm\n"


def test_logs_are_rotated(kubelet: Kubelet) -> None:
    line = "x" * 200
    loop = f"i=0; while :; do i=$((i+1)); echo $i {line}; [ $((i % 50)) != 0 ] || sleep 0.1; done"
    kubelet.add("talker", {"containers": [{"name": "talker", "command": ["sh", "-c", loop]}]})
    pod = kubelet.until_ready("talker")
    directory = f"/var/log/pods/default_talker-criagent-vm_{pod['metadata']['uid']}/talker"
    until(lambda: len(list(Path(directory).glob("0.log.*"))) >= 2, "two rotations", LIMIT_S)
    assert restarts(kubelet.until_ready("talker")) == {"talker": 0}
    kubelet.remove("talker")


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


def _exec(pod: Json, container: str, *command: str) -> str:
    """Output of a command in a container of the pod."""
    cri = Cri()
    row = ids(pod)[container].removeprefix("criagent://")
    answer = cri.exec(row, *command, timeout=60)
    cri.close()
    assert answer.exit_code == 0, answer.stderr
    return str(answer.stdout.decode())


def test_a_pod_without_the_hosts_users(kubelet: Kubelet, host_directory: Path) -> None:
    script = "id -u > /scratch/user; cat /proc/self/uid_map > /scratch/map; touch /host/made"
    script += "; grep mapped /info/name && touch /memory/$0; exec sleep 1000000"
    places = ("scratch", "memory", "host", "info")
    containers = [
        {
            "name": name,
            "command": ["sh", "-c", script, name],
            "securityContext": {"procMount": kind},
            "volumeMounts": [{"name": place, "mountPath": f"/{place}"} for place in places],
        }
        for name, kind in (("masked", "Default"), ("open", "Unmasked"))
    ]
    field = {"path": "name", "fieldRef": {"fieldPath": "metadata.name"}}
    volumes = [
        {"name": "scratch", "emptyDir": {}},
        {"name": "memory", "emptyDir": {"medium": "Memory"}},
        {"name": "host", "hostPath": {"path": str(host_directory)}},
        {"name": "info", "downwardAPI": {"items": [field]}},
    ]
    kubelet.add("mapped", {"hostUsers": False, "volumes": volumes, "containers": containers})
    pod = kubelet.until_ready("mapped")
    of_pod = Path("/var/lib/kubelet/pods", pod["metadata"]["uid"], "volumes")
    scratch, memory = (of_pod / "kubernetes.io~empty-dir" / name for name in ("scratch", "memory"))
    until(lambda: len(list(memory.iterdir())) == 2, "both containers' marks", LIMIT_S)
    inside, outside, length = map(int, (scratch / "map").read_text().split())
    assert (inside, length) == (0, 65536)
    assert outside >= 65536
    assert (scratch / "user").read_text() == "0\n"
    assert {(scratch / "user").stat().st_uid, (host_directory / "made").stat().st_uid} == {0}
    cri = Cri()
    for row in cri.containers():
        if row.labels["io.kubernetes.pod.uid"] == pod["metadata"]["uid"]:
            mounts = cri.exec(row.id, "cat", "/proc/mounts", timeout=60).stdout
            assert (b" /proc/" in mounts) == (row.metadata.name == "masked")
    cri.close()
    kubelet.remove("mapped")


@pytest.fixture
def host_directory() -> Iterator[Path]:
    """A directory of the node."""
    place = Path("/var/lib/test-host")
    place.mkdir()
    yield place
    shutil.rmtree(place)
