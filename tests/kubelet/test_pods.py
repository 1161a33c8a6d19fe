# SPDX-License-Identifier: Apache-2.0
"""Pods whose containers start in an order, and pods with users of their own."""

from __future__ import annotations

from pathlib import Path

from tests.support.cri_client import Cri
from tests.support.kubelet_node import LIMIT_S, Kubelet, restarts, run, until


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
    assert run(pod, "main", "cat", "/box/order") == "first\nsidecar\nmain\n"


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
    for container_id in cri.containers():
        if container_id.labels["io.kubernetes.pod.uid"] == pod["metadata"]["uid"]:
            mounts = cri.exec(container_id.id, "cat", "/proc/mounts", timeout=LIMIT_S).stdout
            assert (b" /proc/" in mounts) == (container_id.metadata.name == "masked")
    cri.close()
    kubelet.remove("mapped")
