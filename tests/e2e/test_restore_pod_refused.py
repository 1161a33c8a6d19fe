# SPDX-License-Identifier: Apache-2.0
"""RestorePod of what is not a checkpoint of this node, or does not fit: nothing is left."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.support import agent
from tests.support.checkpoints import CheckpointedPod, goes_on, restore, start
from tests.support.cri_client import DEBIAN, api
from tests.support.pods import Pods
from tests.support.refusals import refused

pytestmark = pytest.mark.root

BAD = grpc.StatusCode.INVALID_ARGUMENT
CORRUPT = grpc.StatusCode.DATA_LOSS
UNSUPPORTED = grpc.StatusCode.UNIMPLEMENTED
_RESTORES = Path("/var/lib/criagent/restores")


@pytest.fixture
def saved(pods: Pods, tmp_path: Path) -> Iterator[tuple[CheckpointedPod, Path]]:
    """A pod of two containers, which is gone, and its checkpoint."""
    old = CheckpointedPod(pods)
    goes_on(pods, old.add())
    goes_on(pods, old.add())
    old.checkpoint(tmp_path / "output")
    old.remove()
    yield old, tmp_path / "output"
    assert not pods.cri.pods()
    assert not pods.cri.containers()
    assert not list(_RESTORES.iterdir())


def rewritten(output: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """pod.json with another manifest and the former signature."""
    document = json.loads((output / "pod.json").read_bytes())
    change(document["manifest"])
    (output / "pod.json").write_text(json.dumps(document))


def member(name: str, content: bytes = b"", **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    for field, value in fields.items():
        setattr(entry, field, value)
    return entry, content


def appended(archive: Path, *members: tuple[tarfile.TarInfo, bytes]) -> None:
    """Put more members in front of those of the archive, whose length stays the same."""
    size = archive.stat().st_size
    with tarfile.open(archive, "w") as tar:
        for entry, content in members:
            tar.addfile(entry, io.BytesIO(content))
    os.truncate(archive, size)


def test_a_manifest_that_this_node_has_not_signed_is_refused(
    pods: Pods, saved: tuple[CheckpointedPod, Path]
) -> None:
    old, output = saved
    request = old.request(output)
    original = (output / "pod.json").read_bytes()
    digest = hashlib.sha256(b"").hexdigest()
    for change in (
        lambda m: m["containers"][0].update(sha256=digest),
        lambda m: m["containers"][0].update(archive="../../../etc/shadow"),
        lambda m: m["containers"][0]["container"]["spec"]["security"].update(privileged=True),
        lambda m: m.update(shm=""),
    ):
        rewritten(output, change)
        refused(lambda: restore(pods, request), BAD, "was not signed by this node")
        (output / "pod.json").write_bytes(original)
    for content in (
        b"",
        b"{",
        b"[]",
        b'{"hmac": 1}',
        b'{"hmac": "", "manifest": {}}',
        b"\xff" * 99,
    ):
        (output / "pod.json").write_bytes(content)
        refused(lambda: restore(pods, request), BAD, "pod.json")
    with (output / "pod.json").open("r+b") as file:
        file.truncate(65 << 20)
    refused(lambda: restore(pods, request), BAD, "larger than")
    (output / "pod.json").unlink()
    refused(lambda: restore(pods, request), BAD, "is not a checkpoint")
    (output / "pod.json").symlink_to("/etc/passwd")
    refused(lambda: restore(pods, request), BAD, "is not a checkpoint")
    (output / "pod.json").unlink()
    os.mkfifo(output / "pod.json")
    refused(lambda: restore(pods, request), BAD, "regular file")


def test_archives_that_were_changed_are_refused(
    pods: Pods, saved: tuple[CheckpointedPod, Path], tmp_path: Path
) -> None:
    """Whatever is in them, none of it comes to be anywhere."""
    old, output = saved
    request = old.request(output)
    archive = output / f"{old.ids[1]}.tar"  # the first is restored, and undone
    copy = tmp_path / "copy"
    shutil.copy(archive, copy)
    outside = tmp_path / "outside"
    link: dict[str, Any] = {"type": tarfile.SYMTYPE, "linkname": str(outside)}
    hostile: tuple[list[tuple[tarfile.TarInfo, bytes]], ...] = (
        [member("checkpoint/../../../../../../../../../../../../tmp/x", b"x")],
        [member("checkpoint", **link), member("checkpoint/inventory.img", b"x")],
        [member("checkpoint/inventory.img", **link)],
        [member("rootfs-diff.tar", **link)],
        [member("rootfs-diff.tar", type=tarfile.FIFOTYPE)],
        [member("checkpoint/a", b"x"), member("checkpoint/a", b"y")],
        [member("spec.dump", b"{}"), member("spec.dump", b"{}")],
        [member("deleted.files", b"x" * 1000)],
        [member("/checkpoint/inventory.img", b"x")],
        [member("container.log", **link)],
        [],
    )
    for members in hostile:
        appended(archive, *members)
        refused(lambda: restore(pods, request), CORRUPT, f"{old.ids[1]}.tar")
        assert not outside.exists()
        assert not Path("/tmp/x").exists()
    for place in (0, 1000, copy.stat().st_size // 2, copy.stat().st_size - 1):
        shutil.copy(copy, archive)
        with archive.open("r+b") as file:
            file.seek(place)
            byte = file.read(1)[0]
            file.seek(place)
            file.write(bytes([byte ^ 1]))
        refused(lambda: restore(pods, request), CORRUPT, f"{old.ids[1]}.tar")
    archive.unlink()
    archive.symlink_to(copy)
    with pytest.raises(grpc.RpcError):
        restore(pods, request)
    archive.unlink()
    shutil.copy(copy, archive)
    with archive.open("ab") as file:
        file.write(bytes(512))
    refused(lambda: restore(pods, request), CORRUPT, "changed or damaged")
    shutil.copy(copy, archive)
    with (output / "devshm-checkpoint.tar").open("ab") as file:
        file.write(bytes(512))
    refused(lambda: restore(pods, request), CORRUPT, "devshm-checkpoint.tar")


def test_requests_that_do_not_fit_are_refused(
    pods: Pods, saved: tuple[CheckpointedPod, Path]
) -> None:
    old, output = saved

    def changed(change: Callable[[api.RestorePodRequest], object]) -> api.RestorePodRequest:
        request = old.request(output)
        change(request)
        return request

    def privileged(request: api.RestorePodRequest) -> None:
        request.container_configs[1].linux.security_context.privileged = True

    def twice(request: api.RestorePodRequest) -> None:
        request.container_configs[1].metadata.name = "c0"

    def shared_pid(request: api.RestorePodRequest) -> None:
        request.config.linux.security_context.namespace_options.pid = api.POD

    def user_namespace(request: api.RestorePodRequest) -> None:
        ids = [api.IDMapping(host_id=65536, length=65536)]
        users = api.UserNamespace(mode=api.POD, uids=ids, gids=ids)
        request.config.linux.security_context.namespace_options.userns_options.CopyFrom(users)

    cases: list[tuple[Callable[[api.RestorePodRequest], object], str]] = [
        (lambda r: r.ClearField("container_configs"), "container_configs is empty"),
        (lambda r: r.container_configs.pop(), "has the containers c0, c1"),
        (lambda r: setattr(r.container_configs[0].metadata, "name", "x"), "container_configs has"),
        (twice, "twice"),
        (privileged, "security differs"),
        (shared_pid, "namespace_options differs"),
        (user_namespace, "namespace_options differs"),
        (lambda r: setattr(r.container_configs[0], "tty", True), "tty differs"),
        (lambda r: setattr(r.container_configs[1].image, "image", DEBIAN), "with image"),
        (lambda r: r.config.linux.sysctls.update({"net.core.somaxconn": "7"}), "sysctls differs"),
        (lambda r: setattr(r, "runtime_handler", "crun"), "checkpointed by handler"),
        (
            lambda r: r.container_configs[1].mounts.add(container_path="/x", host_path="/tmp"),
            "new: /x; missing: none",
        ),
        (lambda r: setattr(r, "checkpoint_path", "relative"), "absolute"),
        (lambda r: setattr(r, "checkpoint_path", "/nowhere"), "is not a checkpoint"),
        (lambda r: r.options.update({"a": "b"}), "knows no options"),
        (lambda r: r.ClearField("config"), "config is required"),
    ]
    for change, text in cases:
        refused(lambda: restore(pods, changed(change)), BAD, text)  # noqa: B023
    refused(lambda: restore(pods, old.request(output), None), BAD, "deadline")


def test_without_criu_the_package_is_named(pods: Pods, saved: tuple[CheckpointedPod, Path]) -> None:
    old, output = saved
    program = Path(shutil.which("criu") or "")
    hidden = program.rename(program.with_name("hidden"))
    try:
        agent.stop()
        pods.cri.close()
        pods.cri = agent.start()
        request = old.request(output)
        refused(lambda: restore(pods, request), UNSUPPORTED, "install the package criu")
    finally:
        hidden.rename(program)
        agent.stop()
        pods.cri.close()
        pods.cri = agent.start()


UNDOS = ("shared-memory", "containers", "row")  # those of RestorePod, and the last one


@pytest.mark.parametrize("undo", ["", *UNDOS])
def test_a_failure_of_the_second_container_undoes_everything(
    pods: Pods, saved: tuple[CheckpointedPod, Path], undo: str
) -> None:
    """Also if the undo fails once: the kubelet removes what is listed then."""
    old, output = saved
    failures = ["restore-pod:container=ENOSPC"]
    failures += [f"sandbox-run:undo-{undo}=EIO"] if undo else []
    agent.stop()
    pods.cri.close()
    pods.cri = agent.start(f"[debug]\nfail_at = {json.dumps(failures)}\n")
    with pytest.raises(grpc.RpcError) as caught:
        restore(pods, old.request(output))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert [one.state for one in pods.cri.pods()] == ([api.SANDBOX_NOTREADY] if undo else [])
    for sandbox in pods.cri.pods():
        pods.cri.remove_pod(sandbox.id)
    assert not pods.cri.containers()
    sandbox_id, ids = restore(pods, old.request(output))
    start(pods, ids)
    pods.cri.remove_pod(sandbox_id)
    agent.stop()
    pods.cri.close()
    pods.cri = agent.start()


def test_a_container_that_criu_cannot_restore_says_why(
    pods: Pods, saved: tuple[CheckpointedPod, Path]
) -> None:
    old, output = saved
    sandbox, ids = restore(pods, old.request(output))
    images = _RESTORES / ids[0] / "checkpoint"
    kept = (images / "inventory.img").read_bytes()
    (images / "inventory.img").write_bytes(b"\0" * len(kept))
    with pytest.raises(grpc.RpcError) as caught:
        pods.cri.start(ids[0])
    assert "cannot be restored: CRIU, called by runc" in (caught.value.details() or "")
    assert pods.cri.status(ids[0]).state == api.CONTAINER_CREATED
    (images / "inventory.img").write_bytes(kept)
    start(pods, ids)  # tried again
    for container_id in ids:
        goes_on(pods, container_id)
    pods.cri.remove_pod(sandbox)
