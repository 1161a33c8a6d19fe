# SPDX-License-Identifier: Apache-2.0
"""The OCI specification as a whole: what a workload meets, and what can never get in."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from criagent.base.capabilities import NAMES
from criagent.base.errors import InvalidRequestError, UnsupportedError
from criagent.model.common import Resources
from criagent.model.container import (
    Container,
    ContainerId,
    ContainerMetadata,
    ContainerSecurity,
    ContainerSpec,
    ContainerUser,
    KeyValue,
)
from criagent.model.image import Image, ImageConfig
from criagent.model.sandbox import Sandbox, SandboxId, SandboxMetadata, SandboxSpec
from criagent.runtime.node.facts import NodeFacts
from criagent.runtime.spec.build import build_spec, oci_namespaces, process_spec
from criagent.runtime.spec.inputs import ContainerNamespaces, PodFiles, SpecInputs
from criagent.runtime.spec.security.capabilities import DEFAULT
from criagent.runtime.spec.security.seccomp import default_profile

EVIL = {"org.systemd.property.ExecStartPre": "'/bin/sh'", "run.oci.hooks.stdout": "/x"}
PINS = Path("/run/agent/sandboxes/0/ns")
IMAGE = ImageConfig(
    env=("PATH=/image/bin", "LANG=C", "broken", "=x", "NUL=\0"),
    entrypoint=("/entry",),
    cmd=("serve",),
    working_dir="/srv",
    labels=EVIL,
)


def inputs(
    spec: dict[str, Any] | None = None,
    security: dict[str, Any] | None = None,
    image: ImageConfig = IMAGE,
    **more: Any,
) -> SpecInputs:
    wanted = ContainerSpec(
        metadata=ContainerMetadata(name="web"),
        image="web:1",
        annotations=EVIL,
        labels=EVIL,
        security=ContainerSecurity(**security or {}),
        **spec or {},
    )
    pod = SandboxSpec(
        metadata=SandboxMetadata(name="p", uid="u", namespace="n"), annotations=EVIL, labels=EVIL
    )
    container = Container(
        id=ContainerId("1" * 64),
        sandbox_id=SandboxId("0" * 64),
        spec=wanted,
        created_at_ns=1,
        boot_id="b",
        handler="crun",
        resources=wanted.resources,
    )
    made = SpecInputs(
        container=container,
        sandbox=Sandbox(id=container.sandbox_id, spec=pod, created_at_ns=1, boot_id="b"),
        image=Image(id="i", manifest_digest="d", config=image, layers=()),
        user=ContainerUser(uid=1000, gid=1000, groups=(5, 1000)),
        rootfs=Path("/run/agent/containers/1/rootfs"),
        namespaces=ContainerNamespaces(
            network=PINS / "net", ipc=PINS / "ipc", uts=PINS / "uts", pid="new"
        ),
        mounts=(),
        devices=(),
        pod_files=PodFiles(
            resolv_conf=Path("/r"), hostname=Path("/h"), hosts=Path("/o"), shm=Path("/s")
        ),
        cgroups_path="kubepods.slice:cri:1",
        hostname="web-0",
        seccomp=default_profile("x86_64", DEFAULT),
        apparmor="",
        node=NodeFacts(
            capabilities=frozenset(NAMES), controllers=frozenset({"cpu", "memory"}), swap=True
        ),
    )
    return dataclasses.replace(made, **more)


def built(*args: Any, **fields: Any) -> dict[str, Any]:
    return build_spec(inputs(*args, **fields))


def test_the_specification_is_json_and_says_what_the_pod_is() -> None:
    spec = built()
    assert json.loads(json.dumps(spec)) == spec
    assert spec["root"] == {"path": "/run/agent/containers/1/rootfs", "readonly": False}
    assert spec["linux"]["cgroupsPath"] == "kubepods.slice:cri:1"
    assert spec["process"]["user"] == {"uid": 1000, "gid": 1000, "additionalGids": [5, 1000]}
    assert spec["linux"]["seccomp"]["defaultAction"] == "SCMP_ACT_ERRNO"
    assert spec["linux"]["maskedPaths"]
    assert spec["linux"]["readonlyPaths"]


@pytest.mark.parametrize("security", [{}, {"privileged": True}])
def test_nothing_that_images_and_pods_write_freely_gets_in(security: dict[str, Any]) -> None:
    # CVE-2024-3154, CVE-2023-6476: runtimes and systemd act on annotation keys
    spec = built(security=security)
    assert "annotations" not in spec
    assert "hooks" not in spec
    text = json.dumps(spec)
    assert not any(key in text for key in EVIL)


@pytest.mark.parametrize(
    ("spec", "image", "expected"),
    [
        ({}, IMAGE, ["/entry", "serve"]),
        ({"args": ("x",)}, IMAGE, ["/entry", "x"]),
        ({"command": ("/c",)}, IMAGE, ["/c"]),
        ({"command": ("/c",), "args": ("x", "")}, IMAGE, ["/c", "x", ""]),
        ({}, ImageConfig(cmd=("sh",)), ["sh"]),
        ({"args": ("ls",)}, ImageConfig(), ["ls"]),
    ],
)
def test_command_and_arguments_combine_as_kubernetes_says(
    spec: dict[str, Any], image: ImageConfig, expected: list[str]
) -> None:
    assert built(spec, image=image)["process"]["args"] == expected


@pytest.mark.parametrize(
    ("spec", "image"),
    [
        ({}, ImageConfig()),
        ({"args": ("",)}, ImageConfig()),
        ({"command": ("a\0b",)}, IMAGE),
        ({"working_dir": "/a\0b"}, IMAGE),
        ({"working_dir": "/proc/self/fd/7"}, IMAGE),  # CVE-2024-21626
        ({"working_dir": "/proc/self/fd"}, IMAGE),
        ({"working_dir": "//proc/thread-self//fd/8/../.."}, IMAGE),
        ({}, dataclasses.replace(IMAGE, working_dir="proc/self/fd/7")),
        ({"envs": (KeyValue(key="A", value=b"\xff"),)}, IMAGE),
    ],
)
def test_what_cannot_be_run_is_refused(spec: dict[str, Any], image: ImageConfig) -> None:
    with pytest.raises(InvalidRequestError):
        built(spec, image=image)


def test_the_environment_is_layered_and_broken_entries_are_left_out() -> None:
    envs = (KeyValue(key="LANG", value="é".encode()), KeyValue(key="EMPTY", value=b""))
    env = built({"envs": envs, "tty": True})["process"]["env"]
    assert sorted(env) == ["EMPTY=", "HOSTNAME=web-0", "LANG=é", "PATH=/image/bin", "TERM=xterm"]
    plain = built(image=ImageConfig(cmd=("x",)))["process"]["env"]
    assert len(plain) == 2
    assert plain[0].startswith("PATH=/usr/local/sbin:")


@pytest.mark.parametrize(
    ("spec", "image", "cwd"),
    [
        ({}, IMAGE, "/srv"),
        ({"working_dir": "/w"}, IMAGE, "/w"),
        ({"working_dir": "w"}, IMAGE, "/w"),
        ({}, ImageConfig(cmd=("x",)), "/"),
        ({"working_dir": "/srv/fd/x"}, IMAGE, "/srv/fd/x"),
    ],
)
def test_the_working_directory(spec: dict[str, Any], image: ImageConfig, cwd: str) -> None:
    assert built(spec, image=image)["process"]["cwd"] == cwd


def test_namespaces_are_entered_by_path_and_the_nodes_are_left_out() -> None:
    own = {n["type"]: n.get("path") for n in built()["linux"]["namespaces"]}
    assert own == {
        "mount": None,
        "network": f"{PINS}/net",
        "ipc": f"{PINS}/ipc",
        "uts": f"{PINS}/uts",
        "pid": None,
        "cgroup": None,
    }
    host = ContainerNamespaces(network=None, ipc=None, uts=None, pid=None)
    assert oci_namespaces(host, cgroup=False) == [{"type": "mount"}]
    shared = dataclasses.replace(host, pid=Path("/proc/7/ns/pid"))
    assert {"type": "pid", "path": "/proc/7/ns/pid"} in oci_namespaces(shared, cgroup=False)


def test_a_privileged_container_is_not_held_back() -> None:
    spec = built(security={"privileged": True}, seccomp=None, all_devices=True)
    linux = spec["linux"]
    assert "seccomp" not in linux
    assert linux["maskedPaths"] == linux["readonlyPaths"] == []
    assert {"type": "cgroup"} not in linux["namespaces"]
    assert linux["resources"]["devices"] == [{"allow": True, "access": "rwm"}]
    assert set(spec["process"]["capabilities"]["bounding"]) == set(NAMES)


@pytest.mark.parametrize(
    ("score", "floor", "expected"),
    [(-998, -1000, -998), (-998, 0, 0), (1000, 0, 1000), (5, 10, 10)],
)
def test_the_oom_score_is_raised_to_what_the_node_may_set(
    score: int, floor: int, expected: int
) -> None:
    node = NodeFacts(capabilities=frozenset(), oom_score_floor=floor)
    spec = built({"resources": Resources(oom_score_adj=score)}, node=node)
    assert spec["process"]["oomScoreAdj"] == expected


def test_limits_and_device_rules_share_the_resources() -> None:
    resources = built({"resources": Resources(memory_limit_in_bytes=1 << 20)})["linux"]["resources"]
    assert resources["memory"] == {"limit": 1 << 20, "swap": 1 << 20}
    assert resources["devices"][0] == {"allow": False, "access": "rwm"}
    with pytest.raises(UnsupportedError, match="cpuset"):
        built({"resources": Resources(cpuset_cpus="0")})


@pytest.mark.parametrize(
    ("security", "more", "key", "value"),
    [
        ({"no_new_privs": True}, {}, "noNewPrivileges", True),
        ({}, {}, "noNewPrivileges", False),
        ({}, {"apparmor": "mine"}, "apparmorProfile", "mine"),
        ({}, {}, "apparmorProfile", None),
    ],
)
def test_hardening_of_the_process(
    security: dict[str, Any], more: dict[str, Any], key: str, value: object
) -> None:
    assert built(security=security, **more)["process"].get(key) == value


def test_an_exec_differs_from_the_main_process_in_nothing_but_its_command() -> None:
    # CVE-2026-30892 and CVE-2022-24769: same user, same capabilities, nothing inheritable
    process = built()["process"]
    run = process_spec({**process, "consoleSize": {"height": 1, "width": 1}}, ["id"], tty=False)
    assert run == {**process, "args": ["id"], "terminal": False}
    assert run["capabilities"]["inheritable"] == run["capabilities"]["ambient"] == []
    terminal = process_spec(process, ["sh"], tty=True)
    assert "TERM=xterm" in terminal["env"]
    assert terminal["terminal"]


@pytest.mark.parametrize("args", [[], [""], ["a", "b\0"]])
def test_an_exec_of_nothing_is_refused(args: list[str]) -> None:
    with pytest.raises(InvalidRequestError, match="exec"):
        process_spec(built()["process"], args, tty=False)


def test_one_specification_does_not_leak_into_another() -> None:
    # CVE-2021-21334
    first = inputs({"envs": (KeyValue(key="SECRET", value=b"1"),)})
    assert "SECRET=1" in build_spec(first)["process"]["env"]
    assert not any(entry.startswith("SECRET") for entry in built()["process"]["env"])
    again = build_spec(first)
    again["process"]["env"].append("MORE=1")
    again["mounts"].clear()
    assert "MORE=1" not in build_spec(first)["process"]["env"]
    assert build_spec(first)["mounts"]
