# SPDX-License-Identifier: Apache-2.0
"""A root directory on a full disk: pulls fail clearly and leave nothing, removals still work."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from tests.support import agent
from tests.support.cri_client import BUSYBOX, DEBIAN, Cri, container, pod

pytestmark = pytest.mark.root

ROOT = Path("/mnt/small")


@pytest.fixture
def small_root(cri: Cri) -> Iterator[Cri]:
    """An agent whose root directory is a tmpfs of 48 MiB of its own."""
    agent.stop()
    ROOT.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m", "small", ROOT], check=True)
    client = agent.start(f'[storage]\nroot = "{ROOT}/root"\n')
    yield client
    client.close()
    agent.stop()
    subprocess.run(["umount", ROOT], check=True)
    agent.start().close()


def free() -> int:
    facts = os.statvfs(ROOT)
    return facts.f_bavail * facts.f_frsize


def fill(leave: int = 0) -> Path:
    path = ROOT / "filler"
    with path.open("wb") as file:
        try:
            while free() > leave:
                file.write(bytes(min(1 << 16, max(free() - leave, 4096))))
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            pass
    return path


def test_a_pull_on_a_full_disk_fails_and_works_once_there_is_room(small_root: Cri) -> None:
    filler = fill(leave=6 << 20)
    with pytest.raises(grpc.RpcError) as caught:
        small_root.pull(DEBIAN)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED, caught.value.details()
    assert small_root.images() == []
    assert not [p for p in (ROOT / "root/snapshots").iterdir() if p.name.isdigit()]
    filler.unlink()
    small_root.pull(DEBIAN)
    assert len(small_root.images()) == 1


def test_everything_can_be_removed_with_no_byte_free(small_root: Cri) -> None:
    small_root.pull(BUSYBOX)
    config = pod("full", log_directory="/tmp/full-logs")
    sandbox = small_root.run(config)
    container_id = small_root.create(sandbox, container("main", ["sleep", "1000"]), config)
    small_root.start(container_id)
    fill()
    assert free() == 0
    small_root.stop(container_id)
    small_root.remove(container_id)
    small_root.stop_pod(sandbox)
    small_root.remove_pod(sandbox)
    small_root.remove_image(BUSYBOX)
    assert (small_root.pods(), small_root.containers(), small_root.images()) == ([], [], [])
