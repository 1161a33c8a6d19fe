# SPDX-License-Identifier: Apache-2.0
"""CheckpointPod: several containers at one moment, and everything that is refused."""

from __future__ import annotations

import hashlib
import json
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.support.cri_client import api, container
from tests.support.pods import Pods
from tests.support.refusals import refused
from tests.support.waiting import until

pytestmark = pytest.mark.root

BAD = grpc.StatusCode.INVALID_ARGUMENT
WRONG = grpc.StatusCode.FAILED_PRECONDITION
UNSUPPORTED = grpc.StatusCode.UNIMPLEMENTED
# Each writes where the other is, so that one moment shows in both.
_TURNS = "while :; do i=$((i+1)); echo $i > /dev/shm/$0; cat /dev/shm/* > /seen; done"


@pytest.fixture
def output(tmp_path: Path) -> Path:
    path = tmp_path / "output"
    path.mkdir(mode=0o700)
    return path


def checkpoint(
    pods: Pods, sandbox: str, output: Path, ids: list[str], timeout: float | None = 60
) -> None:
    request = api.CheckpointPodRequest(
        pod_sandbox_id=sandbox, output_path=str(output), container_ids=ids
    )
    pods.cri.runtime.CheckpointPod(request, timeout=timeout)


def turns(pods: Pods, pod: tuple[str, api.PodSandboxConfig], name: str) -> str:
    return pods.running("sh", "-c", _TURNS, name, pod=pod)


def goes_on(pods: Pods, container_id: str, name: str) -> None:
    def count() -> int:
        said = pods.cri.exec(container_id, "cat", f"/dev/shm/{name}").stdout
        return int(said or 0)

    before = count()
    until(lambda: count() > before, "the next number")


def test_every_container_is_saved_at_one_moment(pods: Pods, output: Path) -> None:
    pod = pods.sandbox()
    ids = {name: turns(pods, pod, name) for name in ("a", "b", "c")}
    for name, container_id in ids.items():
        goes_on(pods, container_id, name)
    checkpoint(pods, pod[0], output, list(ids.values()))
    for name, container_id in ids.items():
        goes_on(pods, container_id, name)
    archives = {f"{container_id}.tar" for container_id in ids.values()}
    assert {path.name for path in output.iterdir()} == archives | {
        "pod.json",
        "devshm-checkpoint.tar",
    }
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in output.iterdir())
    manifest: dict[str, Any] = json.loads((output / "pod.json").read_bytes())["manifest"]
    assert manifest["sandbox"]["id"] == pod[0]
    for entry in manifest["containers"]:
        archive = output / entry["archive"]
        assert hashlib.sha256(archive.read_bytes()).hexdigest() == entry["sha256"]
        with tarfile.open(archive) as tar:
            assert {"checkpoint/inventory.img", "rootfs-diff.tar"} <= set(tar.getnames())
    with tarfile.open(output / "devshm-checkpoint.tar") as tar:
        assert set(tar.getnames()) == {"a", "b", "c"}


def test_what_is_refused(pods: Pods, output: Path, tmp_path: Path) -> None:
    pod = pods.sandbox()
    first, other = turns(pods, pod, "a"), pods.running()
    created = pods.cri.create(pod[0], container("idle", ["sleep", "1000"]), pod[1])
    full, open_to_all = tmp_path / "full", tmp_path / "open"
    full.mkdir(mode=0o700)
    (full / "file").touch()
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    cases: list[tuple[Callable[[], None], grpc.StatusCode, str]] = [
        (lambda: checkpoint(pods, pod[0], output, []), BAD, "empty"),
        (lambda: checkpoint(pods, pod[0], output, [first, first]), BAD, "twice"),
        (lambda: checkpoint(pods, pod[0], output, [first, other]), BAD, "does not belong"),
        (lambda: checkpoint(pods, pod[0], output, [first, created]), WRONG, "not running"),
        (lambda: checkpoint(pods, pod[0], full, [first]), BAD, "not empty"),
        (lambda: checkpoint(pods, pod[0], open_to_all, [first]), BAD, "chmod"),
        (lambda: checkpoint(pods, pod[0], tmp_path / "none", [first]), BAD, "cannot be used"),
        (lambda: checkpoint(pods, pod[0], full / "file", [first]), BAD, "cannot be used"),
        (lambda: checkpoint(pods, pod[0], Path("x"), [first]), BAD, "absolute"),
        (lambda: checkpoint(pods, pod[0], output, [first], None), BAD, "deadline"),
        (lambda: checkpoint(pods, "f" * 64, output, [first]), grpc.StatusCode.NOT_FOUND, "found"),
    ]
    for call, code, text in cases:
        refused(call, code, text)
    request = api.CheckpointPodRequest(
        pod_sandbox_id=pod[0], output_path=str(output), container_ids=[first], options={"a": "b"}
    )
    refused(lambda: pods.cri.runtime.CheckpointPod(request, timeout=9), BAD, "knows no options")
    assert not list(output.iterdir())
    goes_on(pods, first, "a")


def test_a_shared_pid_namespace_is_refused(pods: Pods, output: Path) -> None:
    def shared(config: Any) -> None:
        config.linux.security_context.namespace_options.pid = api.POD

    pod = pods.sandbox(shared)
    container_id = pods.running(pod=pod, change=shared)
    refused(lambda: checkpoint(pods, pod[0], output, [container_id]), UNSUPPORTED, "PID namespace")


def test_a_user_namespace_is_refused(pods: Pods, output: Path) -> None:
    """Also by runc, which can checkpoint the container alone."""

    def mapped(config: Any) -> None:
        ids = [api.IDMapping(host_id=65536, container_id=0, length=65536)]
        users = api.UserNamespace(mode=api.POD, uids=ids, gids=ids)
        config.linux.security_context.namespace_options.userns_options.CopyFrom(users)

    config = pods.config()
    mapped(config)
    sandbox = pods.cri.run(config, handler="runc")
    container_id = pods.running(pod=(sandbox, config), change=mapped)
    refused(
        lambda: checkpoint(pods, sandbox, output, [container_id]), UNSUPPORTED, "user namespace"
    )
    assert not list(output.iterdir())
    assert pods.cri.exec(container_id, "true").exit_code == 0


@pytest.mark.parametrize("which", [0, 1])
def test_a_stop_of_any_container_ends_it(pods: Pods, output: Path, which: int) -> None:
    pod = pods.sandbox()
    ids = [turns(pods, pod, name) for name in ("a", "b")]
    errors: list[grpc.RpcError] = []

    def work() -> None:
        try:
            checkpoint(pods, pod[0], output, ids)
        except grpc.RpcError as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    until(lambda: any(output.iterdir()) or not thread.is_alive(), "the checkpoint")
    pods.cri.stop(ids[which])
    thread.join()
    assert [error.code() for error in errors] in ([], [WRONG]), errors
    assert bool(errors) != (output / "pod.json").exists()
    assert not errors or not list(output.iterdir())
    goes_on(pods, ids[1 - which], "ba"[which])
