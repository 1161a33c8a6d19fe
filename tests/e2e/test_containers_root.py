# SPDX-License-Identifier: Apache-2.0
"""Writable layers on a file system of their own: what is where, and what a start refuses."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from tests.support import agent
from tests.support.cri_client import BUSYBOX, Cri, api
from tests.support.mapped import mapped
from tests.support.pods import Pods
from tests.support.waiting import until
from tests.support.written import layer

pytestmark = pytest.mark.root

CRIAGENT = ("/opt/venv/bin/python3", "-m", "criagent")
DISK = Path("/mnt/containers-root")
ROOT, APART = DISK / "images", DISK / "containers"


def toml(driver: str, apart: Path | None = APART) -> str:
    line = f'containers_root = "{apart}"\n' if apart else ""
    return f'[storage]\nroot = "{ROOT}/root"\ndriver = "{driver}"\n{line}'


def started(driver: str = "auto") -> Cri:
    return agent.start(toml(driver))


def mount(place: Path, megabytes: int) -> None:
    place.mkdir(parents=True, exist_ok=True)
    options = f"size={megabytes}m,nr_inodes=8000"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "disk", place], check=True)


@pytest.fixture(params=["overlay", "native", "erofs", "fuse-overlayfs"])
def split(pods: Pods, request: pytest.FixtureRequest) -> Iterator[Pods]:
    """Pods of an agent with two disks."""
    agent.stop()
    mount(ROOT, 64)
    mount(APART, 32)
    pods.cri = started(request.param)
    pods.cri.pull(BUSYBOX)
    yield pods
    for sandbox in pods.cri.pods():
        pods.cri.remove_pod(sandbox.id)
    for image in pods.cri.images():
        pods.cri.remove_image(image.id)
    pods.cri.close()
    agent.stop()
    for place in (APART, ROOT):
        subprocess.run(["umount", "--recursive", place], check=True)
        place.rmdir()
    DISK.rmdir()
    pods.cri = agent.start()


def layers(top: Path) -> set[str]:
    return {path.name for path in (top / "snapshots").iterdir() if path.name.isdigit()}


def refusal(config: str) -> str:
    """Why an agent of its own socket does not start."""
    file = DISK.with_suffix(".toml")
    file.write_text(
        config + 'socket = "/run/criagent/other.sock"\n[telemetry]\nmetrics_address = ""\n'
    )
    try:
        command = [*CRIAGENT, "--config", str(file), "serve"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    finally:
        file.unlink()
    assert done.returncode == 1, done.stderr
    events = [json.loads(line) for line in done.stderr.splitlines()]
    (reason,) = [event["error"] for event in events if event["event"] == "not_started"]
    return str(reason)


def only(driver: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("split", [driver], indirect=True)


@pytest.mark.parametrize("userns", [False, True])
def test_what_a_container_writes_is_on_its_own_disk(split: Pods, *, userns: bool) -> None:
    images = layers(ROOT / "root")
    config = split.config()
    if userns:
        mapped()(config)
    pod = split.cri.run(config), config
    container_id = split.running("sleep", "1000", pod=pod)
    script = "echo written > /etc/file; rm /bin/ls; head -c 3000000 /dev/zero > /big"
    assert split.cri.exec(container_id, "sh", "-c", script).exit_code == 0
    assert layers(ROOT / "root") == images
    (number,) = layers(APART)
    assert (APART / "snapshots" / number / "fs/big").stat().st_size == 3_000_000
    agent.kill()
    split.cri = started()
    assert split.cri.exec(container_id, "cat", "/etc/file").stdout == b"written\n"
    split.cri.stop(container_id)
    split.cri.remove(container_id)
    until(lambda: list((APART / "snapshots/trash").iterdir()) == [], "an empty trash")
    assert layers(APART) == set()


def test_both_file_systems_are_told(split: Pods) -> None:
    container_id = split.running(
        "sh", "-c", "head -c 5000000 /dev/zero > /file; echo done; exec sleep 1000"
    )
    until(lambda: "done" in split.log(container_id), "the file")
    until(lambda: layer(split, container_id).used_bytes.value > 4_900_000, "the count", 60)
    own = layer(split, container_id)
    assert own.fs_id.mountpoint == f"{APART}/snapshots"
    info = split.cri.image.ImageFsInfo(api.ImageFsInfoRequest())
    (images,), (containers,) = info.image_filesystems, info.container_filesystems
    assert images.fs_id.mountpoint == f"{ROOT}/root/snapshots"
    assert containers.fs_id.mountpoint == own.fs_id.mountpoint
    assert containers.used_bytes.value == own.used_bytes.value
    assert images.used_bytes.value > 0
    done = subprocess.run([*CRIAGENT, "storage", "info", "--json"], capture_output=True, check=True)
    document = json.loads(done.stdout)
    assert document["file_system"]["mountpoint"] == str(ROOT)
    assert document["containers_root"] == f"{APART}/snapshots"
    assert document["containers_file_system"]["mountpoint"] == str(APART)


@only("overlay")
def test_a_full_disk_of_containers_leaves_images_alone(split: Pods) -> None:
    pod = split.sandbox()
    container_id = split.running("sleep", "1000", pod=pod)
    fillers = APART / "fillers"
    fillers.mkdir()
    for number in range(os.statvfs(APART).f_favail):
        (fillers / str(number)).touch()
    found = split.cri.exec(container_id, "touch", "/file")
    assert b"No space left" in found.stderr
    with pytest.raises(grpc.RpcError) as caught:
        split.running("sleep", "1000", pod=pod)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED, caught.value.details()
    assert f"no space left below {APART}/snapshots" in str(caught.value.details())
    assert [one.id for one in split.cri.containers()] == [container_id]
    split.cri.stop(container_id)
    split.cri.remove(container_id)
    until(lambda: layers(APART) == set(), "the removal")
    shutil.rmtree(fillers)
    split.cri.exec(split.running("sleep", "1000", pod=pod), "true")


@only("overlay")
def test_an_unmounted_disk_of_containers_is_refused_until_it_is_back(split: Pods) -> None:
    container_id = split.running("sleep", "1000")
    agent.stop()
    kept = DISK / "kept"
    kept.mkdir()
    subprocess.run(["mount", "--bind", APART, kept], check=True)
    subprocess.run(["umount", APART], check=True)
    try:
        text = refusal(toml("auto"))
        assert "has no file criagent.id" in text
        assert "mount its file system" in text
        assert list(APART.iterdir()) == []
    finally:
        subprocess.run(["mount", "--bind", kept, APART], check=True)
        subprocess.run(["umount", kept], check=True)
        kept.rmdir()
    split.cri = started()
    assert split.cri.exec(container_id, "echo", "alive").stdout == b"alive\n"


@only("overlay")
def test_another_directory_is_refused_while_containers_exist(split: Pods) -> None:
    container_id = split.running("sleep", "1000")
    agent.stop()
    for other in (None, DISK / "third"):
        text = refusal(toml("auto", other))
        assert str(APART) in text
        assert "crictl rmp -a -f" in text
    split.cri = started()
    split.cri.stop(container_id)
    split.cri.remove(container_id)
    agent.stop()
    split.cri = agent.start(toml("auto", None))
    second = split.running("sleep", "1000")
    assert split.cri.exec(second, "echo", "alive").stdout == b"alive\n"
    assert layers(APART) == set()
    split.cri.stop(second)
    split.cri.remove(second)
    agent.stop()
    split.cri = started()


@only("overlay")
def test_the_directory_of_another_agent_is_refused(split: Pods) -> None:
    file = APART / "criagent.id"
    other = toml("auto").replace(f"{ROOT}/root", f"{ROOT}/second")
    assert "another criagent serves with storage.containers_root" in refusal(other)
    agent.stop()
    text = refusal(other)
    assert f"{ROOT}/root" in text
    assert "set another directory" in text
    mine = file.read_text()
    for database in (ROOT / "root").glob("state.db*"):
        database.unlink()
    split.cri = started("overlay")
    assert file.read_text() == mine
    split.cri.pull(BUSYBOX)


@only("overlay")
def test_containers_of_a_lost_disk_can_be_removed(split: Pods) -> None:
    sandbox, config = split.sandbox()
    container_id = split.running("true", pod=(sandbox, config))
    until(lambda: split.cri.status(container_id).state == api.CONTAINER_EXITED, "the end")
    agent.stop()
    subprocess.run(["umount", "--lazy", APART], check=True)
    mount(APART, 32)
    command = refusal(toml("auto")).partition("`")[2].partition("`")[0]
    subprocess.run(["sh", "-c", command], check=True)
    split.cri = started()
    split.cri.remove_pod(sandbox)
    assert split.cri.containers() == []
    split.cri.exec(split.running("sleep", "1000"), "true")


def test_a_driver_that_cannot_split_refuses_the_key() -> None:
    file = Path("/tmp/containers-root.toml")
    file.write_text('[storage]\ndriver = "btrfs"\ncontainers_root = "/mnt/apart"\n')
    command = [*CRIAGENT, "--config", str(file), "config", "check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    file.unlink()
    assert done.returncode == 2
    assert "storage.containers_root" in done.stderr
    assert "overlay" in done.stderr
