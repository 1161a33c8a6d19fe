# SPDX-License-Identifier: Apache-2.0
"""Pods of images in an additional store, which is on a read-only file system."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from criagent.kernel.mount import mountinfo
from tests.storage.grounds import file_system
from tests.support import agent
from tests.support.cri_client import BUSYBOX, api
from tests.support.mapped import mapped
from tests.support.pods import Pods

pytestmark = pytest.mark.root

STORE, OWN = Path("/mnt/additional-store"), Path("/mnt/additional-own")


@pytest.fixture(params=["overlay", "native"])
def driver(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def start(pods: Pods, driver: str) -> None:
    pods.cri = agent.start(
        f'[storage]\nroot = "{OWN}"\ndriver = "{driver}"\nadditional_stores = ["{STORE}"]\n'
    )


@pytest.fixture
def store(pods: Pods, driver: str) -> Iterator[Pods]:
    """Pods of an agent without images, beside a store that has one."""
    agent.stop()
    with file_system(STORE, "overlay", "ext4"), file_system(OWN, "overlay", "ext4"):
        agent.start(f'[storage]\nroot = "{STORE}"\ndriver = "{driver}"\n').pull(BUSYBOX)
        agent.stop()
        subprocess.run(["mount", "-o", "remount,ro", STORE], check=True)
        start(pods, driver)
        yield pods
        for sandbox in pods.cri.pods():
            pods.cri.remove_pod(sandbox.id)
        agent.stop()
    pods.cri = agent.start()


@pytest.mark.parametrize("userns", [False, True])
def test_pods_run_and_survive_a_restart(store: Pods, driver: str, *, userns: bool) -> None:
    (image,) = store.cri.images()
    assert BUSYBOX in image.repo_tags
    assert image.pinned
    config = store.config()
    if userns:
        mapped()(config)
    pod = store.cri.run(config), config
    container_id = store.running("sleep", "1000", pod=pod)
    done = store.cri.exec(container_id, "sh", "-c", "rm /bin/ls; echo new > /etc/new")
    assert done.exit_code == 0, done.stderr
    assert store.cri.exec(container_id, "stat", "-c", "%u", "/bin/cat").stdout == b"0\n"
    agent.kill()
    start(store, driver)
    assert store.cri.exec(container_id, "cat", "/etc/new").stdout == b"new\n"
    second = store.running("sleep", "1000", pod=pod)
    assert store.cri.exec(second, "ls", "/bin/ls").stdout == b"/bin/ls\n"
    assert not [entry for entry in mountinfo() if "/lowers" in entry.target]


def test_an_image_volume_of_it(store: Pods) -> None:
    def volume(config: api.ContainerConfig) -> None:
        mount = config.mounts.add(container_path="/volume", readonly=True)
        mount.image.image = BUSYBOX

    container_id = store.running("sleep", "1000", change=volume)
    assert store.cri.exec(container_id, "ls", "/volume/bin/ls").exit_code == 0


def test_it_is_told_and_refuses_removal(store: Pods, driver: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        store.cri.remove_image(BUSYBOX)
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert str(STORE) in (caught.value.details() or "")
    command = [sys.executable, "-m", "criagent", "storage", "info", "--output", "json"]
    document = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    assert document["additional_stores"] == [{"root": str(STORE), "images": 1, "problem": ""}]
    agent.stop()
    subprocess.run(["umount", STORE], check=True)
    start(store, driver)
    assert list(store.cri.images()) == []
    assert "additional_store_not_used" in agent.LOG.read_text()
    store.cri.pull(BUSYBOX)
    assert len(store.cri.images()) == 1
