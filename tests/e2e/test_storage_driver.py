# SPDX-License-Identifier: Apache-2.0
"""The driver of a root directory: chosen once, remembered, and used by pods."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from criagent.kernel import btrfs
from criagent.kernel.mount import mountinfo
from tests.storage.grounds import file_system
from tests.support import agent
from tests.support.cri_client import BUSYBOX, Cri, api
from tests.support.mapped import mapped
from tests.support.pods import Pods
from tests.support.waiting import until

pytestmark = pytest.mark.root

CRIAGENT = ("/opt/venv/bin/python3", "-m", "criagent")
OTHER = Path("/mnt/storage-driver")


def with_driver(name: str) -> Cri:
    """The agent with the other root directory."""
    return agent.start(f'[storage]\nroot = "{OTHER}"\ndriver = "{name}"\n')


@pytest.fixture(params=["native", "btrfs"])
def driver(request: pytest.FixtureRequest) -> str:
    """A driver whose root file systems are bind mounts."""
    name: str = request.param
    return name


@pytest.fixture
def other(pods: Pods, driver: str) -> Iterator[Pods]:
    """Pods of an agent with that driver, on a file system of its own."""
    agent.stop()
    with file_system(OTHER, driver):
        pods.cri = with_driver(driver)
        pods.cri.pull(BUSYBOX)
        yield pods
        for sandbox in pods.cri.pods():
            pods.cri.remove_pod(sandbox.id)
        pods.cri.close()
        agent.stop()
    pods.cri = agent.start()


def numbers(snapshots: Path) -> list[str]:
    return sorted(path.name for path in snapshots.iterdir() if path.name.isdigit())


def info() -> str:
    command = [*CRIAGENT, "info", "--json"]
    done = subprocess.run(command, capture_output=True, check=True)
    driver: str = json.loads(done.stdout)["storage"]["driver"]
    return driver


@pytest.mark.parametrize("driver", ["native", "btrfs", "erofs"])
def test_a_checkpoint_has_what_was_changed(other: Pods, tmp_path: Path) -> None:
    """Found in the upper directory of erofs, else by comparison with the image."""
    script = "echo new > /new; rm /bin/ls; chmod 600 /etc/passwd; while :; do sleep 0.05; done"
    container_id = other.running("sh", "-c", script)
    new = ("cat", "/new")
    until(lambda: other.cri.exec(container_id, *new).stdout == b"new\n", "the changes")
    until(lambda: other.cri.exec(container_id, "test", "-e", "/bin/ls").exit_code, "the changes")
    until(
        lambda: other.cri.exec(container_id, "stat", "-c%a", "/etc/passwd").stdout == b"600\n",
        "the changes",
    )
    location = tmp_path / "x.tar"
    request = api.CheckpointContainerRequest(container_id=container_id, location=str(location))
    other.cri.runtime.CheckpointContainer(request, timeout=60)
    with tarfile.open(location) as tar:
        deleted, diff = tar.extractfile("deleted.files"), tar.extractfile("rootfs-diff.tar")
        assert deleted is not None
        assert json.load(deleted) == ["/bin/ls"]
        directories = {"bin", "etc", "tmp"}  # CRIU makes and removes one in /tmp
        with tarfile.open(fileobj=diff) as changed:
            assert set(changed.getnames()) <= {"new", "etc/passwd", *directories}
            assert {"new", "etc/passwd"} <= set(changed.getnames())
    assert not list((OTHER / "checkpoints").iterdir())


@pytest.mark.parametrize("userns", [False, True])
def test_pods_run_and_survive_a_restart(other: Pods, driver: str, *, userns: bool) -> None:
    config = other.config()
    if userns:
        mapped()(config)
    pod = other.cri.run(config), config
    container_id = other.running("sleep", "1000", pod=pod)
    other.cri.exec(container_id, "sh", "-c", "echo written > /etc/file; rm /bin/ls")
    assert other.cri.exec(container_id, "stat", "-c", "%u", "/etc/file").stdout == b"0\n"
    agent.kill()
    other.cri = with_driver("auto")
    assert info() == driver
    assert other.cri.exec(container_id, "cat", "/etc/file").stdout == b"written\n"
    second = other.running("sleep", "1000", pod=pod)
    assert other.cri.exec(second, "ls", "/etc/file").exit_code != 0
    assert other.cri.exec(second, "ls", "/bin/ls").stdout == b"/bin/ls\n"


@pytest.mark.parametrize("another", ["native", "overlay"])
def test_another_root_does_not_end_containers(other: Pods, another: str) -> None:
    """A changed storage.root is no lost database."""
    container_id = other.running("sleep", "1000")
    agent.stop()
    third = OTHER / "third"
    with contextlib.suppress(AssertionError):  # it listens before it has found them, or it does not
        agent.start(f'[storage]\nroot = "{third}"\ndriver = "{another}"\n').close()
    assert agent.died()
    refusal = agent.LOG.read_text().splitlines()[-1]
    assert container_id in refusal
    assert "storage.root" in refusal
    other.cri = with_driver("auto")
    assert other.cri.exec(container_id, "echo", "alive").stdout == b"alive\n"


def test_containers_without_their_database_are_ended(other: Pods, driver: str) -> None:
    container_id = other.running("sleep", "1000")
    agent.stop()
    for file in OTHER.glob("state.db*"):
        file.unlink()
    other.cri = with_driver(driver)
    assert other.cri.containers() == []
    assert not Path("/run/criagent/containers", container_id).exists()
    assert numbers(OTHER / "snapshots") == []


def refusal(driver: str) -> str:
    """Why an agent with that driver does not start with the other root directory."""
    config = OTHER / "config.toml"
    config.write_text(
        f'[storage]\nroot = "{OTHER}"\nsocket = "/run/criagent/other.sock"\ndriver = "{driver}"\n'
        '[telemetry]\nmetrics_address = ""\n'
    )
    command = [*CRIAGENT, "--config", str(config), "serve"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    events = [json.loads(line) for line in done.stderr.splitlines()]
    (reason,) = [event["error"] for event in events if event["event"] == "not_started"]
    return str(reason)


def test_layers_of_a_lost_database_are_left_to_their_driver(other: Pods, driver: str) -> None:
    agent.stop()
    layers = numbers(OTHER / "snapshots")
    for file in OTHER.glob("state.db*"):
        file.unlink()
    for _ in range(2):  # the refusal is not remembered as a choice
        reason = refusal("erofs")
        assert f"restore {OTHER}/state.db" in reason
        assert driver in reason
    assert numbers(OTHER / "snapshots") == layers != []
    other.cri = with_driver(driver)
    assert info() == driver
    assert numbers(OTHER / "snapshots") == []


def test_another_driver_is_refused_until_the_root_is_empty(other: Pods, driver: str) -> None:
    agent.stop()
    reason = refusal("overlay")
    assert f'set storage.driver = "{driver}"' in reason
    assert "criagent storage migrate" in reason
    other.cri = with_driver("auto")
    for image in other.cri.images():
        other.cri.remove_image(image.id)
    agent.stop()
    other.cri = with_driver("overlay")
    assert info() == "overlay"


@pytest.mark.parametrize("driver", ["btrfs"])
def test_nothing_is_left_of_subvolumes(other: Pods) -> None:
    """Neither of those of pods and images, nor of one that somebody made in a container."""
    pod = other.sandbox()
    container_id = other.running("sleep", "1000", pod=pod)
    (rootfs,) = [
        entry.target for entry in mountinfo() if f"containers/{container_id}" in entry.target
    ]
    fd = os.open(rootfs, os.O_RDONLY)
    btrfs.create(fd, "own")
    os.close(fd)
    other.cri.exec(container_id, "touch", "/own/file")
    snapshots = OTHER / "snapshots"
    assert len(numbers(snapshots)) == 2
    other.cri.remove_pod(pod[0])
    for image in other.cri.images():
        other.cri.remove_image(image.id)
    until(lambda: numbers(snapshots) == [], "the removal of subvolumes")
    until(lambda: not list((snapshots / "trash").iterdir()), "the trash")
    done = subprocess.run(["btrfs", "subvolume", "list", OTHER], capture_output=True, check=True)
    assert done.stdout == b""


def test_an_image_volume_is_read_only_and_a_removed_image_leaves_it(other: Pods) -> None:
    pod = other.sandbox()

    def volume(config: api.ContainerConfig) -> None:
        mount = config.mounts.add(container_path="/volume", readonly=True)
        mount.image.image = BUSYBOX

    container_id = other.running("sleep", "1000", pod=pod, change=volume)
    assert other.cri.exec(container_id, "ls", "/volume/bin/ls").exit_code == 0
    assert other.cri.exec(container_id, "touch", "/volume/new").exit_code == 1
