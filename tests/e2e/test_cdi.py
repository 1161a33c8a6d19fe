# SPDX-License-Identifier: Apache-2.0
"""CDI devices in real containers, device ownership, and privileged containers without devices."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.support import agent
from tests.support.cri_client import Cri, api, container
from tests.support.mapped import mapped
from tests.support.pods import Pods
from tests.support.waiting import until

FOLDER = Path("/etc/cdi")
TRANSIENT = Path("/var/run/cdi")
INVALID = grpc.StatusCode.INVALID_ARGUMENT


@pytest.fixture(autouse=True)
def folders() -> Iterator[None]:
    """Empty folders, which are gone afterwards."""
    for folder in (FOLDER, TRANSIENT):
        folder.mkdir(parents=True)
    yield
    for folder in (FOLDER, TRANSIENT):
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()


def write(file: Path, *, common: dict[str, Any] | None = None, **devices: dict[str, Any]) -> None:
    document = {
        "cdiVersion": "0.7.0",
        "kind": "vendor.com/test",
        "containerEdits": common or {},
        "devices": [{"name": name, "containerEdits": edits} for name, edits in devices.items()],
    }
    file.write_text(json.dumps(document))


def asking(*names: str, user: int = 0) -> Callable[[api.ContainerConfig], None]:
    def change(config: api.ContainerConfig) -> None:
        for name in names:
            config.CDI_devices.add(name=f"vendor.com/test={name}")
        if user:
            config.linux.security_context.run_as_user.value = user

    return change


def refused(pods: Pods, names: list[str]) -> str:
    """The text with which a container with these devices is refused."""
    sandbox, config = pods.sandbox()
    wanted = container("refused", ["sleep", "1"])
    asking(*names)(wanted)
    with pytest.raises(grpc.RpcError) as caught:
        pods.cri.create(sandbox, wanted, config)
    assert caught.value.code() is INVALID
    return str(caught.value.details())


def output(pods: Pods, container_id: str, *words: str) -> str:
    found = pods.cri.exec(container_id, *words)
    assert found.exit_code == 0, found.stderr
    return found.stdout.decode().strip()


@pytest.mark.parametrize("handler", ["crun", "runc"])
def test_every_edit_arrives_in_the_container(pods: Pods, tmp_path: Path, handler: str) -> None:
    os.mknod(tmp_path / "node", stat.S_IFCHR | 0o600, os.makedev(1, 5))
    (tmp_path / "library").mkdir()
    (tmp_path / "library/content").write_text("of the vendor")
    hook = tmp_path / "hook"
    hook.write_text(f'#!/bin/sh\ncat > {tmp_path}/state\necho "$1 $MARK" > {tmp_path}/said\n')
    hook.chmod(0o755)
    write(
        FOLDER / "vendor.json",
        common={
            "env": ["VENDOR=yes"],
            "hooks": [
                {
                    "hookName": "createRuntime",
                    "path": str(hook),
                    "args": ["hook", "one"],
                    "env": ["MARK=two", "PATH=/bin:/usr/bin"],
                    "timeout": 10,
                }
            ],
            "additionalGids": [4321],
        },
        zero={
            "env": ["WHICH=zero"],
            "deviceNodes": [
                {"path": "/dev/vendor/zero", "hostPath": str(tmp_path / "node")},
                {"path": "/dev/owned", "type": "c", "major": 1, "minor": 3, "fileMode": 0o640,
                 "uid": 7, "gid": 8},
            ],
            "mounts": [
                {
                    "hostPath": str(tmp_path / "library"),
                    "containerPath": "/usr/vendor",
                    "options": ["ro", "nosuid", "rbind"],
                }
            ],
        },
    )  # fmt: skip
    config = pods.config()
    sandbox = (pods.cri.run(config, handler=handler), config)
    container_id = pods.running(change=asking("zero", user=1000), pod=sandbox)
    names = output(
        pods, container_id, "stat", "-c", "%a %u %g %t:%T", "/dev/vendor/zero", "/dev/owned"
    )
    assert names.splitlines() == ["600 1000 0 1:5", "640 7 8 1:3"]
    assert output(pods, container_id, "sh", "-c", "head -c 3 /dev/vendor/zero | wc -c") == "3"
    assert output(pods, container_id, "sh", "-c", "echo $VENDOR $WHICH") == "yes zero"
    assert output(pods, container_id, "cat", "/usr/vendor/content") == "of the vendor"
    assert pods.cri.exec(container_id, "touch", "/usr/vendor/new").exit_code != 0
    assert "4321" in output(pods, container_id, "id", "-G").split()
    assert 4321 in pods.cri.status(container_id).user.linux.supplemental_groups
    assert (tmp_path / "said").read_text() == "one two\n"
    assert json.loads((tmp_path / "state").read_text())["id"] == container_id


@pytest.mark.parametrize("handler", ["crun", "runc"])
def test_devices_and_mounts_in_a_pod_with_a_user_namespace(
    pods: Pods, tmp_path: Path, handler: str
) -> None:
    (tmp_path / "library").mkdir()
    (tmp_path / "library/content").write_text("of the vendor")
    write(
        FOLDER / "vendor.json",
        one={
            "deviceNodes": [{"path": "/dev/fuse"}],
            "mounts": [
                {
                    "hostPath": str(tmp_path / "library"),
                    "containerPath": "/usr/vendor",
                    "options": ["ro", "rbind"],
                }
            ],
        },
    )
    config = pods.config()
    mapped()(config)
    sandbox = (pods.cri.run(config, handler=handler), config)
    container_id = pods.running(change=asking("one"), pod=sandbox)
    assert output(pods, container_id, "stat", "-c", "%t:%T", "/dev/fuse") == "a:e5"
    assert output(pods, container_id, "cat", "/usr/vendor/content") == "of the vendor"
    if handler == "crun":  # runc maps mounts from 1.2 on
        words = ("stat", "-c", "%u %g", "/dev/fuse", "/usr/vendor/content")
        assert output(pods, container_id, *words).splitlines() == ["0 0", "0 0"]


def test_groups_are_among_the_ids_of_the_user_namespace(pods: Pods) -> None:
    write(FOLDER / "a.json", one={"additionalGids": [65536]})
    sandbox, config = pods.sandbox(mapped())
    wanted = container("refused", ["sleep", "1"])
    asking("one")(wanted)
    with pytest.raises(grpc.RpcError, match="group 65536 is outside") as caught:
        pods.cri.create(sandbox, wanted, config)
    assert caught.value.code() is INVALID


def test_specifications_are_read_when_they_change(pods: Pods) -> None:
    text = refused(pods, ["one"])
    assert "vendor.com/test=one is in no specification in /etc/cdi, /var/run/cdi" in text
    write(FOLDER / "a.json", one={"env": ["FROM=static"]})
    assert output(pods, pods.running(change=asking("one")), "sh", "-c", "echo $FROM") == "static"
    (TRANSIENT / "b.yaml").write_text(
        "cdiVersion: 0.5.0\nkind: vendor.com/test\n"
        "devices:\n- name: one\n  containerEdits: {env: [FROM=transient]}\n"
    )
    container_id = pods.running(change=asking("one"))
    assert output(pods, container_id, "sh", "-c", "echo $FROM") == "transient"
    (TRANSIENT / "b.yaml").unlink()
    container_id = pods.running(change=asking("one"))
    assert output(pods, container_id, "sh", "-c", "echo $FROM") == "static"


def test_a_broken_file_is_named_and_hides_no_other(pods: Pods) -> None:
    (FOLDER / "broken.json").write_text("{")
    write(FOLDER / "good.json", one={"env": ["A=b"]})
    pods.running(change=asking("one"))
    text = refused(pods, ["one", "two"])
    assert "vendor.com/test=two" in text
    assert "available devices of that kind: vendor.com/test=one" in text
    assert "/etc/cdi/broken.json" in text


def test_annotations_bring_no_device(pods: Pods) -> None:
    # CVE-2026-53492
    write(FOLDER / "a.json", one={"env": ["A=b"]})

    def annotated(config: api.ContainerConfig | api.PodSandboxConfig) -> None:
        config.annotations["cdi.k8s.io/vendor"] = "vendor.com/test=one"

    container_id = pods.running(change=annotated, pod=pods.sandbox(annotated))
    assert output(pods, container_id, "sh", "-c", "echo [$A]") == "[]"


def test_a_failing_hook_fails_the_container_and_leaves_nothing(pods: Pods, tmp_path: Path) -> None:
    program = tmp_path / "hook"
    program.write_text("#!/bin/sh\ncat > /dev/null\nexit 3\n")
    program.chmod(0o755)
    write(FOLDER / "a.json", one={"hooks": [{"hookName": "createRuntime", "path": str(program)}]})
    sandbox, config = pods.sandbox()
    wanted = container("hooked", ["sleep", "1"])
    asking("one")(wanted)
    with pytest.raises(grpc.RpcError, match=f"{tmp_path}/hook"):
        pods.cri.create(sandbox, wanted, config)
    assert pods.cri.containers() == []


def test_a_hook_of_the_end_runs_at_the_removal(pods: Pods, tmp_path: Path) -> None:
    program = tmp_path / "hook"  # crun 1.21 dies of SIGPIPE when a hook leaves its input unread
    program.write_text(f"#!/bin/sh\ncat > {tmp_path}/gone\n")
    program.chmod(0o755)
    write(FOLDER / "a.json", one={"hooks": [{"hookName": "poststop", "path": str(program)}]})
    container_id = pods.running(change=asking("one"))
    assert not (tmp_path / "gone").exists()
    pods.cri.stop(container_id)
    pods.cri.remove(container_id)
    until((tmp_path / "gone").exists, "the hook's mark")


@pytest.fixture
def configured(pods: Pods) -> Iterator[Callable[[str], Cri]]:
    """Restarts the agent with a `[runtime]` section; the default one comes back afterwards."""

    def restart(text: str) -> Cri:
        agent.stop()
        pods.cri = agent.start(f"[runtime]\n{text}\n")
        return pods.cri

    yield restart
    for sandbox in pods.cri.pods():
        pods.cri.remove_pod(sandbox.id)
    pods.cri.close()
    agent.stop()
    agent.start().close()


def test_requested_devices_can_belong_to_the_user(
    pods: Pods, configured: Callable[[str], Cri]
) -> None:
    def device(config: api.ContainerConfig) -> None:
        config.devices.add(container_path="/dev/mine", host_path="/dev/full", permissions="rw")
        config.linux.security_context.run_as_user.value = 1000
        config.linux.security_context.run_as_group.value = 2000

    stat_words = ("stat", "-c", "%u %g", "/dev/mine")
    assert output(pods, pods.running(change=device), *stat_words) == "0 0"
    configured("device_ownership_from_security_context = true")
    assert output(pods, pods.running(change=device), *stat_words) == "1000 2000"


def test_a_handler_can_keep_devices_from_privileged_containers(
    pods: Pods, configured: Callable[[str], Cri]
) -> None:
    def privileged(config: api.PodSandboxConfig | api.ContainerConfig) -> None:
        config.linux.security_context.privileged = True

    configured('handlers.crun = { path = "/usr/bin/crun", privileged_without_host_devices = true }')
    container_id = pods.running(pod=pods.sandbox(privileged), change=privileged)
    names = output(pods, container_id, "ls", "/dev").split()
    assert "null" in names
    assert not {"fuse", "kvm", "loop-control", "kmsg"} & set(names)
    written = Path("/run/criagent/containers", container_id, "config.json").read_text()
    assert json.loads(written)["linux"]["resources"]["devices"][0]["allow"] is False
