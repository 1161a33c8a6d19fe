# SPDX-License-Identifier: Apache-2.0
"""Two handlers with storage drivers of their own in one root directory: crun's is overlay."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from criagent.kernel.mount import mountinfo
from tests.storage.grounds import file_system
from tests.support import agent
from tests.support.cri_client import BUSYBOX, DEBIAN, Cri, api, container
from tests.support.mapped import mapped
from tests.support.pods import Pods

pytestmark = pytest.mark.root

CRIAGENT = ("/opt/venv/bin/python3", "-m", "criagent")
OTHER = Path("/mnt/handler-storage")
POINTS = ("pull-image:extracted", "pull-image:unpacked", "pull-image:committed")
UNPACKING = (
    "unpack-image:unpacked",
    "unpack-image:committed",
    "container-create:row",
    "container-create:ready",
    "snapshot-remove:trash",
    "remove-image:layers",
)


def with_driver(name: str, more: str = "") -> Cri:
    """The agent with the other root directory; runc has the driver, "" = that of crun."""
    key = f'[runtime.handlers.runc]\nsnapshotter = "{name}"\n' if name else ""
    return agent.start(f'[storage]\nroot = "{OTHER}"\ndriver = "overlay"\n{key}{more}')


@pytest.fixture(params=["native", "btrfs"])
def driver(request: pytest.FixtureRequest) -> str:
    """The driver of the handler runc."""
    name: str = request.param
    return name


@pytest.fixture
def other(pods: Pods, driver: str) -> Iterator[Pods]:
    """Pods of an agent whose handlers differ, on a file system that both drivers can use."""
    agent.stop()
    with file_system(OTHER, driver, size=600 << 20):
        pods.cri = with_driver(driver)
        yield pods
        if not agent.running():
            pods.cri = with_driver(driver)
        for sandbox in pods.cri.pods():
            pods.cri.remove_pod(sandbox.id)
        pods.cri.close()
        agent.stop()
    pods.cri = agent.start()


def numbers(driver: str = "") -> list[str]:
    top = OTHER / (f"snapshots-{driver}" if driver else "snapshots")
    return sorted(path.name for path in top.iterdir() if path.name.isdigit())


def of_runc(pods: Pods, *, userns: bool = False) -> tuple[str, api.PodSandboxConfig]:
    config = pods.config()
    if userns:
        mapped()(config)
    return pods.cri.run(config, handler="runc"), config


def rootfs(container_id: str) -> str:
    """The type of the file system of a container's root."""
    place = f"/run/criagent/containers/{container_id}/rootfs"
    (found,) = [entry.fstype for entry in mountinfo() if entry.target == place]
    return found


def storage_info() -> str:
    command = [*CRIAGENT, "storage", "info"]
    return subprocess.run(command, capture_output=True, check=True, text=True).stdout


def pull(cri: Cri, image: str, handler: str) -> None:
    request = api.PullImageRequest(image=api.ImageSpec(image=image, runtime_handler=handler))
    cri.image.PullImage(request, timeout=120)


@pytest.mark.parametrize("userns", [False, True])
def test_each_pod_has_the_driver_of_its_handler(other: Pods, driver: str, *, userns: bool) -> None:
    """The image is pulled once, for the default handler: as without the kubelet's feature gate."""
    other.cri.pull(BUSYBOX)
    assert numbers(driver) == []
    pod = of_runc(other, userns=userns)
    one, two = other.running("sleep", "1000"), other.running("sleep", "1000", pod=pod)
    assert rootfs(one) == "overlay"
    assert rootfs(two) != "overlay"
    for container_id, text in ((one, "one"), (two, "two")):
        other.cri.exec(container_id, "sh", "-c", f"echo {text} > /etc/own; rm /bin/ls")
    agent.kill()
    other.cri = with_driver(driver)
    assert other.cri.exec(one, "cat", "/etc/own").stdout == b"one\n"
    assert other.cri.exec(two, "cat", "/etc/own").stdout == b"two\n"
    third = other.running("sleep", "1000", pod=pod)
    assert other.cri.exec(third, "ls", "/bin/ls").stdout == b"/bin/ls\n"
    for sandbox in other.cri.pods():
        other.cri.remove_pod(sandbox.id)
    other.cri.remove_image(BUSYBOX)
    assert (numbers(), numbers(driver)) == ([], [])


def test_a_pull_for_a_handler_unpacks_for_it_alone(other: Pods, driver: str) -> None:
    pull(other.cri, BUSYBOX, "runc")
    assert numbers() == []
    assert len(numbers(driver)) == 1
    for handler in ("", "runc"):
        spec = api.ImageSpec(image=BUSYBOX, runtime_handler=handler)
        found = other.cri.image.ImageStatus(api.ImageStatusRequest(image=spec), timeout=10)
        assert found.image.repo_tags == [BUSYBOX]
    other.running("sleep", "1000", pod=of_runc(other))
    assert numbers() == []


def test_usage_is_told_by_driver(other: Pods, driver: str) -> None:
    other.cri.pull(BUSYBOX)
    pull(other.cri, BUSYBOX, "runc")
    info = other.cri.image.ImageFsInfo(api.ImageFsInfoRequest(), timeout=10)
    places = [str(OTHER / "snapshots"), str(OTHER / f"snapshots-{driver}")]
    for usages in (info.image_filesystems, info.container_filesystems):
        assert [usage.fs_id.mountpoint for usage in usages] == places
    assert all(usage.used_bytes.value for usage in info.image_filesystems)
    container_id = other.running("sleep", "1000", pod=of_runc(other))
    other.cri.exec(container_id, "dd", "if=/dev/zero", "of=/big", "bs=1M", "count=3", "conv=fsync")
    request = api.ContainerStatsRequest(container_id=container_id)
    layer = other.cri.runtime.ContainerStats(request, timeout=10).stats.writable_layer
    assert layer.fs_id.mountpoint == places[1]
    text = storage_info()
    assert f"Handlers: runc\nDriver: {driver}\nRoot: {places[1]}" in text


def test_image_volumes_come_from_the_driver_of_the_pod(other: Pods, driver: str) -> None:
    other.cri.pull(BUSYBOX)
    other.cri.pull(DEBIAN)

    def with_volume(config: api.ContainerConfig) -> None:
        config.mounts.add(container_path="/volume", readonly=True).image.image = DEBIAN

    container_id = other.running("sleep", "1000", change=with_volume, pod=of_runc(other))
    assert b"Debian" in other.cri.exec(container_id, "cat", "/volume/etc/os-release").stdout
    before = numbers(driver)
    other.cri.remove_image(DEBIAN)
    assert numbers(driver) == before
    assert b"Debian" in other.cri.exec(container_id, "cat", "/volume/etc/os-release").stdout


def test_a_handler_can_lose_its_driver_while_it_has_containers(other: Pods, driver: str) -> None:
    other.cri.pull(BUSYBOX)
    pod = of_runc(other)
    old = other.running("sh", "-c", "echo kept > /file; exec sleep 1000", pod=pod)
    agent.kill()
    other.cri = with_driver("")
    assert other.cri.exec(old, "cat", "/file").stdout == b"kept\n"
    assert "Handlers: none any more" in storage_info()
    new = other.running("sleep", "1000", pod=pod)
    assert rootfs(new) == "overlay"
    for container_id in (old, new):
        other.cri.stop(container_id)
        other.cri.remove(container_id)
    done = subprocess.run([*CRIAGENT, "image", "prune"], check=True, capture_output=True, text=True)
    assert "1 snapshots" in done.stdout
    assert numbers(driver) == []
    agent.stop()
    other.cri = with_driver("")
    assert "Handlers: none any more" not in storage_info()


@pytest.mark.parametrize("point", POINTS)
def test_a_pull_for_a_handler_survives_a_crash(other: Pods, driver: str, point: str) -> None:
    agent.stop()
    other.cri = with_driver(driver, f'[debug]\nkill_at = "{point}"\n')
    with pytest.raises(grpc.RpcError):
        pull(other.cri, BUSYBOX, "runc")
    assert agent.died()
    other.cri = with_driver(driver)
    pull(other.cri, BUSYBOX, "runc")
    other.running("sleep", "1000", pod=of_runc(other))
    assert (len(numbers()), len(numbers(driver))) == (0, 2)


@pytest.mark.parametrize("point", UNPACKING)
def test_a_life_survives_a_crash_in_the_other_driver(other: Pods, driver: str, point: str) -> None:
    other.cri.pull(BUSYBOX)
    agent.stop()
    other.cri = with_driver(driver, f'[debug]\nkill_at = "{point}"\n')
    sandbox, config = of_runc(other)
    wanted = container("main", ["sleep", "1000"])

    def until_the_crash() -> None:
        container_id = other.cri.create(sandbox, wanted, config)
        other.cri.remove(container_id)
        other.cri.remove_image(BUSYBOX)

    with pytest.raises(grpc.RpcError):
        until_the_crash()
    assert agent.died()
    other.cri = with_driver(driver)
    other.cri.pull(BUSYBOX)
    for old in other.cri.containers():
        other.cri.remove(old.id)
    container_id = other.cri.create(sandbox, wanted, config)
    other.cri.start(container_id)
    assert other.cri.exec(container_id, "echo", "alive").stdout == b"alive\n"
    assert (len(numbers()), len(numbers(driver))) == (1, 2)
    other.cri.remove_pod(sandbox)
    other.cri.remove_image(BUSYBOX)
    assert (numbers(), numbers(driver)) == ([], [])


def serve(text: str) -> tuple[int, str]:
    """Exit status and last error of an agent that does not start."""
    config = OTHER / "config.toml"
    head = f'[storage]\nroot = "{OTHER}"\nsocket = "/run/criagent/other.sock"\n'
    config.write_text(f'{head}driver = "overlay"\n{text}[telemetry]\nmetrics_address = ""\n')
    command = [*CRIAGENT, "--config", str(config), "serve"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stderr


@pytest.mark.parametrize("driver", ["native"], indirect=True)
@pytest.mark.usefixtures("other")
def test_a_driver_that_cannot_work_is_refused_at_the_start() -> None:
    agent.stop()
    status, errors = serve('[runtime.handlers.runc]\nsnapshotter = "btrfs"\n')
    (reason,) = [e["error"] for e in map(json.loads, errors.splitlines()) if "error" in e]
    assert status == 1
    assert reason.startswith('runtime.handlers.runc.snapshotter is "btrfs": ')
    assert "is not on btrfs" in reason
    status, errors = serve('[runtime.handlers.runc]\nsnapshotter = "nativ"\n')
    assert status == 2
    assert "runtime.handlers.runc.snapshotter: must be one of" in errors
    status, errors = serve('[runtime.handlers.crun]\nsnapshotter = "native"\n')
    assert status == 2
    assert "crun is the default handler" in errors


@pytest.mark.parametrize("driver", ["native"], indirect=True)
def test_a_disk_that_is_gone_does_not_keep_pods_for_ever(other: Pods) -> None:
    """Its driver is refused, and without the key its containers can be removed."""
    agent.stop()
    disk, image = OTHER / "snapshots-btrfs", OTHER / "disk.img"
    disk.mkdir()
    with image.open("wb") as file:
        file.truncate(200 << 20)
    subprocess.run(["mkfs.btrfs", "-q", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, disk], check=True)
    try:
        other.cri = with_driver("btrfs")
        other.cri.pull(BUSYBOX)
        pod = of_runc(other)
        container_id = other.running("sleep", "1000", pod=pod)
        other.cri.stop(container_id)
        agent.stop()
        subprocess.run(["umount", "-l", disk], check=True)
        status, errors = serve('[runtime.handlers.runc]\nsnapshotter = "btrfs"\n')
        assert status == 1
        assert "is not on btrfs" in errors
        other.cri = with_driver("")
        assert "storage_driver_gone" in agent.LOG.read_text()
        assert other.cri.status(container_id).state == api.CONTAINER_EXITED
        other.cri.remove(container_id)
        other.running("sleep", "1000", pod=pod)
        subprocess.run([*CRIAGENT, "image", "prune"], check=True, capture_output=True)
        agent.stop()
        other.cri = with_driver("")
        assert "Driver: btrfs" not in storage_info()
    finally:
        subprocess.run(["umount", "-l", disk], check=False, capture_output=True)
