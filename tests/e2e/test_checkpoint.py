# SPDX-License-Identifier: Apache-2.0
"""CheckpointContainer: the archive, the container that goes on, and everything that is refused."""

from __future__ import annotations

import hashlib
import json
import socket
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from tests.support import agent
from tests.support.cri_client import BUSYBOX, api
from tests.support.pods import Pods
from tests.support.refusals import refused
from tests.support.waiting import until

pytestmark = pytest.mark.root

_COUNT = "i=0; while :; do i=$((i+1)); echo $i > /count; sleep 0.05; done"
_COUNT_UNTIL_GO = "i=0; while [ ! -e /go ]; do i=$((i+1)); echo $i > /count; sleep 0.05; done"
_IDS = [api.IDMapping(host_id=65536, length=65536)]
_USERNS = api.UserNamespace(mode=api.POD, uids=_IDS, gids=_IDS)
_OWN = Path("/var/lib/criagent/checkpoints")


@pytest.fixture(params=["crun", "runc"])
def counter(pods: Pods, request: pytest.FixtureRequest) -> str:
    """A container that counts in a file."""
    config = pods.config()
    sandbox = pods.cri.run(config, handler=request.param)
    return pods.running("sh", "-c", _COUNT, pod=(sandbox, config))


def checkpoint(pods: Pods, container_id: str, location: Path, timeout: int = 0) -> None:
    request = api.CheckpointContainerRequest(
        container_id=container_id, location=str(location), timeout=timeout
    )
    pods.cri.runtime.CheckpointContainer(request, timeout=120)


def count(pods: Pods, container_id: str) -> int:
    said = b""

    def read() -> bool:
        nonlocal said
        said = pods.cri.exec(container_id, "cat", "/count").stdout
        return bool(said)

    until(read, "the count", 60)
    return int(said)


def goes_on(pods: Pods, container_id: str) -> None:
    """The container counts, from where it was."""
    before = count(pods, container_id)
    until(lambda: count(pods, container_id) > before, "the next number")


def _with_users(config: api.ContainerConfig) -> None:
    config.linux.security_context.namespace_options.userns_options.CopyFrom(_USERNS)


def ctl(*arguments: str | Path) -> str:
    command = ["checkpointctl", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def members(archive: Path) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(archive) as tar:
        return {member.name: member for member in tar}


def document(archive: Path, name: str) -> object:
    with tarfile.open(archive) as tar:
        file = tar.extractfile(name)
        assert file is not None
        return json.load(file)


def test_the_container_goes_on_and_the_archive_has_every_part(
    pods: Pods, counter: str, tmp_path: Path
) -> None:
    script = "echo new > /new; rm /etc/group; mkdir -p /a/b; ln -s /x /a/b/link; ln /new /a/hard"
    assert pods.cri.exec(counter, "sh", "-c", f"{script}; chmod 600 /etc/passwd").exit_code == 0
    before = count(pods, counter)
    archive = tmp_path / "checkpoint.tar"
    checkpoint(pods, counter, archive)
    goes_on(pods, counter)
    assert count(pods, counter) > before
    assert (archive.stat().st_mode & 0o777, archive.stat().st_uid) == (0o600, 0)
    found = members(archive)
    assert {"checkpoint", "dump.log", "stats-dump", "config.dump", "spec.dump"} <= set(found)
    assert {"rootfs-diff.tar", "deleted.files", "container.log", "bind.mounts"} <= set(found)
    assert "checkpoint/inventory.img" in found
    assert document(archive, "deleted.files") == ["/etc/group"]
    with (
        tarfile.open(archive) as tar,
        tarfile.open(fileobj=tar.extractfile("rootfs-diff.tar")) as d,
    ):
        diff = {member.name: member for member in d}
    assert {"new", "a", "a/b", "a/b/link", "a/hard", "count", "etc/passwd"} <= set(diff)
    assert not {"etc/group", "etc/hosts", "etc/resolv.conf", "dev", "proc"} & set(diff)
    assert diff["etc/passwd"].mode == 0o600
    assert diff["a/b/link"].linkname == "/x"
    assert {diff["new"].type, diff["a/hard"].type} == {tarfile.REGTYPE, tarfile.LNKTYPE}
    config = document(archive, "config.dump")
    assert isinstance(config, dict)
    assert config["id"] == counter
    assert not list(_OWN.iterdir())


def test_checkpointctl_shows_it(pods: Pods, counter: str, tmp_path: Path) -> None:
    """The field's own tool finds the container, its pod, its processes and its size."""
    checkpoint(pods, counter, tmp_path / "x.tar")
    shown = ctl("show", tmp_path / "x.tar")
    assert counter[:12] in shown
    assert BUSYBOX in shown
    tree = ctl("inspect", "--all", tmp_path / "x.tar")
    for expected in (f"ID: {counter}", "Process tree", "[1]", "Root FS diff size", "Frozen time"):
        assert expected in tree, tree


def test_memory_of_256_mb(pods: Pods, tmp_path: Path) -> None:
    """All of it is in the archive, and as before afterwards: tail has it until somebody reads."""
    size, line = 256 << 20, b"0123456\n"
    script = (
        f"yes 0123456 | head -c {size} | tail -c {size} | {{ read first; {_COUNT_UNTIL_GO}; "
        "md5sum > /sum; while :; do sleep 0.05; done; }"
    )
    container_id = pods.running("sh", "-c", script)
    until(lambda: count(pods, container_id), "256 MB", 60)
    archive = tmp_path / "x.tar"
    checkpoint(pods, container_id, archive)
    assert archive.stat().st_size > size
    goes_on(pods, container_id)
    pods.cri.exec(container_id, "touch", "/go")
    rest = hashlib.md5(line * (size // len(line) - 1), usedforsecurity=False).hexdigest()
    said = b""

    def read() -> bool:
        nonlocal said
        said = pods.cri.exec(container_id, "cat", "/sum").stdout
        return bool(said)

    until(read, "the sum", 60)
    assert said.split()[0].decode() == rest


def test_an_agent_killed_while_criu_works(pods: Pods, tmp_path: Path) -> None:
    """CRIU is left alone, the container goes on, and nothing of it is left."""
    script = f"yes | head -c {128 << 20} | tail -c {128 << 20} | {{ read first; {_COUNT}; }}"
    container_id = pods.running("sh", "-c", script)
    until(lambda: count(pods, container_id), "128 MB", 60)
    location = tmp_path / "x.tar"
    request = api.CheckpointContainerRequest(container_id=container_id, location=str(location))
    call = pods.cri.runtime.CheckpointContainer.future(request, timeout=60)
    until(lambda: any(_OWN.glob("*/checkpoint/*.img")) or call.done(), "CRIU")
    agent.kill()
    assert isinstance(call.exception(), grpc.RpcError)
    pods.cri.close()
    pods.cri = agent.start()
    until(lambda: not list(_OWN.iterdir()), "the end of the checkpoint")
    goes_on(pods, container_id)
    assert not location.exists()
    checkpoint(pods, container_id, location)
    assert "checkpoint/inventory.img" in members(location)
    pods.cri.stop(container_id)


def test_a_user_namespace(pods: Pods, tmp_path: Path) -> None:
    """runc can, and owners are those that the container sees; crun 1.21 says why it cannot."""
    for handler in ("runc", "crun"):
        config = pods.config()
        config.linux.security_context.namespace_options.userns_options.CopyFrom(_USERNS)
        sandbox = pods.cri.run(config, handler=handler)
        container_id = pods.running(
            "sh",
            "-c",
            f"touch /owned; chown 7:8 /owned; {_COUNT}",
            pod=(sandbox, config),
            change=_with_users,
        )
        count(pods, container_id)
        location = tmp_path / f"{handler}.tar"
        if handler == "crun":
            internal = grpc.StatusCode.INTERNAL
            refused(lambda: checkpoint(pods, container_id, location), internal, "CRIU")  # noqa: B023
            assert not location.exists()
        else:
            checkpoint(pods, container_id, location)
            with (
                tarfile.open(location) as tar,
                tarfile.open(fileobj=tar.extractfile("rootfs-diff.tar")) as diff,
            ):
                owned = diff.getmember("owned")
                assert (owned.uid, owned.gid) == (7, 8)
                assert not [member.name for member in diff if member.uid > 65535]
        goes_on(pods, container_id)


def test_a_tcp_listener_with_a_connection(pods: Pods, tmp_path: Path) -> None:
    """It is saved, or CRIU is too old for the kernel and says so; both go on in any case."""
    sandbox = pods.sandbox()
    container_id = pods.running("nc", "-ll", "-p", "80", "-e", "cat", pod=sandbox)
    address = pods.cri.pod_status(sandbox[0]).network.ip
    listens = ("grep", "-q", ":0050 ", "/proc/net/tcp", "/proc/net/tcp6")
    until(lambda: not pods.cri.exec(container_id, *listens).exit_code, "port 80")
    with socket.create_connection((address, 80), timeout=20) as connection:
        echoed(connection, b"before")
        location = tmp_path / "x.tar"
        try:
            checkpoint(pods, container_id, location)
            print("figure: a TCP listener was checkpointed")
        except grpc.RpcError as error:
            assert error.code() is grpc.StatusCode.INTERNAL
            assert "install CRIU 4.2 or newer" in (error.details() or "")
            assert not location.exists()
        echoed(connection, b"after")
    with socket.create_connection((address, 80), timeout=20) as another:
        echoed(another, b"another")


def echoed(connection: socket.socket, words: bytes) -> None:
    connection.sendall(words)
    found = b""
    while len(found) < len(words):
        piece = connection.recv(100)
        assert piece, found
        found += piece
    assert found == words


def test_two_checkpoints_one_after_the_other(pods: Pods, counter: str, tmp_path: Path) -> None:
    checkpoint(pods, counter, tmp_path / "1.tar")
    checkpoint(pods, counter, tmp_path / "2.tar")
    goes_on(pods, counter)
    for name in ("1.tar", "2.tar"):
        assert "checkpoint/inventory.img" in members(tmp_path / name)


def test_locations_that_cannot_be_used(pods: Pods, tmp_path: Path) -> None:
    container_id = pods.running("sh", "-c", _COUNT)
    taken = tmp_path / "taken"
    taken.write_text("mine")
    link = tmp_path / "link"
    link.symlink_to("/etc/passwd")
    bad = grpc.StatusCode.INVALID_ARGUMENT
    for location, code, text in (
        (taken, grpc.StatusCode.ALREADY_EXISTS, "exists"),
        (link, grpc.StatusCode.ALREADY_EXISTS, "exists"),
        (tmp_path / "none" / "x.tar", bad, "create it first"),
        (Path("relative.tar"), bad, "absolute"),
        (tmp_path / ".." / "x.tar", bad, "absolute"),
        (Path("/var/lib/criagent/x.tar"), bad, "directory of the agent"),
        (Path(f"/run/criagent/containers/{container_id}/rootfs/x"), bad, "directory of the agent"),
        (Path("/proc/x.tar"), grpc.StatusCode.UNIMPLEMENTED, "O_TMPFILE"),
    ):
        refused(lambda at=location: checkpoint(pods, container_id, at), code, text)
    assert taken.read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".log") == [
        "link",
        "taken",
    ]
    goes_on(pods, container_id)


def test_only_running_containers(pods: Pods, tmp_path: Path) -> None:
    location = tmp_path / "x.tar"
    missing = grpc.StatusCode.NOT_FOUND
    refused(lambda: checkpoint(pods, "f" * 64, location), missing, "not found")
    container_id = pods.running("sleep", "1000")
    pods.cri.stop(container_id)
    wrong = grpc.StatusCode.FAILED_PRECONDITION
    refused(lambda: checkpoint(pods, container_id, location), wrong, "exited")
    refused(
        lambda: checkpoint(pods, container_id, location, -1),
        grpc.StatusCode.INVALID_ARGUMENT,
        "negative",
    )
    assert not location.exists()


@pytest.mark.parametrize("at_work", [False, True])
def test_a_stop_comes_before_a_checkpoint(pods: Pods, tmp_path: Path, *, at_work: bool) -> None:
    """Neither waits for the other for ever, and no half archive is left."""
    container_id = pods.running("sh", "-c", f"trap 'exit 3' TERM; {_COUNT}")
    count(pods, container_id)
    location = tmp_path / "x.tar"
    errors: list[grpc.RpcError] = []

    def work() -> None:
        try:
            checkpoint(pods, container_id, location)
        except grpc.RpcError as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    if at_work:
        until(lambda: any(_OWN.iterdir()) or not thread.is_alive(), "the checkpoint")
    pods.cri.stop(container_id, 10)
    thread.join()
    assert pods.cri.status(container_id).exit_code == 3
    assert bool(errors) != location.exists()
    for error in errors:
        assert error.code() is grpc.StatusCode.FAILED_PRECONDITION, error.details()
    pods.cri.remove(container_id)


def test_a_caller_that_does_not_wait(pods: Pods, tmp_path: Path) -> None:
    memory = "x=$(head -c 100000000 /dev/zero | tr '\\0' x)"
    container_id = pods.running("sh", "-c", f"{memory}; {_COUNT}")
    count(pods, container_id)
    location = tmp_path / "x.tar"
    request = api.CheckpointContainerRequest(container_id=container_id, location=str(location))
    with pytest.raises(grpc.RpcError) as caught:
        pods.cri.runtime.CheckpointContainer(request, timeout=0.05)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    until(lambda: not list(_OWN.iterdir()), "the end of the checkpoint")
    goes_on(pods, container_id)


@pytest.fixture(autouse=True)
def nothing_of_a_checkpoint_is_left() -> Iterator[None]:
    yield
    assert not list(_OWN.iterdir())
