# SPDX-License-Identifier: Apache-2.0
"""Volumes: images, sub-paths, propagation, memory.

A projected volume is not among them: a kubelet without an API server mounts none of any source
("cannot setup projected volume … because kube client is not configured").
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cri_client import DEBIAN
from tests.support.kubelet_node import (
    LIMIT_S,
    Json,
    Kubelet,
    run,
    shell,
    sleeper,
    states,
    until,
    volume,
)


def test_an_image_as_a_volume(kubelet: Kubelet) -> None:
    image = {"reference": DEBIAN, "pullPolicy": "IfNotPresent"}
    mounts = [
        {"name": "image", "mountPath": "/whole"},
        {"name": "image", "mountPath": "/data", "subPath": "srv/data"},
    ]
    kubelet.add(
        "image",
        {
            "volumes": [{"name": "image", "image": image}],
            "containers": [sleeper(name, volumeMounts=mounts) for name in ("one", "two")],
        },
    )
    pod = kubelet.until_ready("image")
    for name in ("one", "two"):
        assert run(pod, name, "cat", "/whole/srv/data/original") == "lower content\n"
        assert run(pod, name, "ls", "/data") == "original\noriginal-too\n"
        script = "touch /whole/x 2>&1; true"
        assert "Read-only file system" in run(pod, name, "sh", "-c", script)
    kubelet.remove("image")


def test_an_image_volume_that_cannot_be_had_holds_its_pod(kubelet: Kubelet) -> None:
    missing = {"reference": "registry.k8s.io/not/there:1", "pullPolicy": "Always"}
    mounts = [{"name": "image", "mountPath": "/image"}]
    kubelet.add(
        "missing",
        {
            "volumes": [{"name": "image", "image": missing}],
            "containers": [sleeper("main", volumeMounts=mounts)],
        },
    )
    kubelet.until(
        "missing",
        lambda pod: (
            states(pod).get("main", {}).get("waiting", {}).get("reason")
            in {"ErrImagePull", "ImagePullBackOff"}
        ),
        "ErrImagePull",
    )


def test_sub_paths(kubelet: Kubelet, host_directory: Path) -> None:
    (host_directory / "inner").mkdir()
    (host_directory / "inner/file").write_text("of the host\n")
    field = {"fieldRef": {"fieldPath": "metadata.name"}}
    mounts = [
        {"name": "host", "mountPath": "/inner", "subPath": "inner", "readOnly": True},
        {"name": "host", "mountPath": "/file", "subPath": "inner/file"},
        {"name": "box", "mountPath": "/mine", "subPathExpr": "$(NAME)"},
    ]
    script = "echo mine > /mine/file; exec sleep 1000000"
    kubelet.add(
        "sub",
        {
            "volumes": [
                {"name": "host", "hostPath": {"path": str(host_directory)}},
                {"name": "box", "emptyDir": {}},
            ],
            "containers": [
                shell(
                    "main", script, env=[{"name": "NAME", "valueFrom": field}], volumeMounts=mounts
                )
            ],
        },
    )
    pod = kubelet.until_ready("sub")
    assert run(pod, "main", "cat", "/inner/file", "/file") == "of the host\n" * 2
    assert "Read-only" in run(pod, "main", "sh", "-c", "touch /inner/new 2>&1; true")
    mine = volume(pod, "box") / pod["metadata"]["name"] / "file"
    until(mine.exists, "the script's file", LIMIT_S)
    assert mine.read_text() == "mine\n"
    kubelet.remove("sub")
    uid = pod["metadata"]["uid"]
    until(lambda: not [line for line in _mounts() if uid in line], "its unmounts", LIMIT_S)


def test_memory_volumes_and_the_downward_api(kubelet: Kubelet) -> None:
    field = {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}
    mounts = [{"name": name, "mountPath": f"/{name}"} for name in ("memory", "info")]
    volumes = [
        {"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
        {"name": "info", "downwardAPI": {"items": [field]}},
    ]
    spec = {"volumes": volumes, "containers": [sleeper("main", volumeMounts=mounts)]}
    kubelet.add("memory", spec, labels={"colour": "blue"})
    pod = kubelet.until_ready("memory")
    assert run(pod, "main", "cat", "/info/labels") == 'colour="blue"'
    script = "head -c 2097152 /dev/zero > /memory/x; wc -c < /memory/x"
    assert run(pod, "main", "sh", "-c", script).strip() == str(1 << 20)


def test_mounts_propagate_as_asked(kubelet: Kubelet, shared_directory: Path) -> None:
    volumes = [{"name": "host", "hostPath": {"path": str(shared_directory)}}]

    def container(name: str, kind: str) -> Json:
        mount = {"name": "host", "mountPath": "/host", "mountPropagation": kind}
        privileged = {"privileged": kind == "Bidirectional"}
        return sleeper(name, volumeMounts=[mount], securityContext=privileged)

    kinds = {"both": "Bidirectional", "in": "HostToContainer", "none": "None"}
    containers = [container(name, kind) for name, kind in kinds.items()]
    kubelet.add("propagation", {"volumes": volumes, "containers": containers})
    pod = kubelet.until_ready("propagation")
    run(pod, "both", "sh", "-c", "mkdir /host/a && mount -t tmpfs made-inside /host/a")
    (shared_directory / "b").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "made-outside", shared_directory / "b"], check=True)
    seen = {name: run(pod, name, "cat", "/proc/mounts") for name in kinds}
    assert {name: "made-inside" in text for name, text in seen.items()} == {
        "both": True,
        "in": True,
        "none": False,
    }
    assert {name: "made-outside" in text for name, text in seen.items()} == {
        "both": True,
        "in": True,
        "none": False,
    }
    assert any("made-inside" in line for line in _mounts())
    for name in ("a", "b"):
        subprocess.run(["umount", shared_directory / name], check=True)
    assert "made-" not in run(pod, "in", "cat", "/proc/mounts")


@pytest.fixture
def shared_directory(kubelet: Kubelet, host_directory: Path) -> Iterator[Path]:
    """A directory of the node that is a shared mount."""
    subprocess.run(["mount", "--bind", host_directory, host_directory], check=True)
    subprocess.run(["mount", "--make-shared", host_directory], check=True)
    yield host_directory
    kubelet.remove("propagation")
    subprocess.run(["umount", "--recursive", host_directory], check=True)


def _mounts() -> list[str]:
    return Path("/proc/self/mountinfo").read_text().splitlines()
