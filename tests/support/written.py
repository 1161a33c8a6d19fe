# SPDX-License-Identifier: Apache-2.0
"""What a container has written: on the disk, and as its statistics have it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from criagent.image.snapshots.mounted import elsewhere
from criagent.kernel.mount import mountinfo
from tests.support.cri_client import api
from tests.support.pods import Pods
from tests.support.waiting import until


def upper(container_id: str) -> Path:
    """The host's directory of what counts as written by the container.

    A skip where that is no directory: the driver has its figures from its blocks or from times.
    """
    (entry,) = [one for one in mountinfo() if one.target == str(rootfs(container_id))]
    if entry.fstype in {"btrfs", "zfs"}:
        pytest.skip(f"{entry.fstype} counts what it allocated: tests/storage/test_conformance.py")
    return snapshot(container_id) / "fs"


def snapshot(container_id: str) -> Path:
    """The host's directory of the container's snapshot, with any driver that mounts directories."""
    (entry,) = [one for one in mountinfo() if one.target == str(rootfs(container_id))]
    if other := elsewhere(entry, Path("/nowhere")):  # its upper directory, where there is one
        place = Path(other.partition(" of ")[0]).parent
        return Path("/var/lib/criagent/snapshots", place.name)
    raise AssertionError(f"{container_id} has no root: {entry}")


def rootfs(container_id: str) -> Path:
    """Where the host sees the root of a container, without the mounts in it."""
    return Path("/run/criagent/containers", container_id, "rootfs")


def du(top: Path) -> tuple[int, int]:
    """What du says without the top itself."""
    found = []
    for option in ("--block-size=1", "--inodes"):
        words = subprocess.run(["du", "-s", option, top], capture_output=True, check=True).stdout
        found.append(int(words.split()[0]))
    return found[0] - top.stat().st_blocks * 512, found[1] - 1


def layer(pods: Pods, container_id: str) -> api.FilesystemUsage:
    request = api.ContainerStatsRequest(container_id=container_id)
    return pods.cri.runtime.ContainerStats(request).stats.writable_layer


def counted(pods: Pods, container_id: str) -> api.FilesystemUsage:
    """The figures of a count: not those that a container has from its creation."""
    created_at = pods.cri.status(container_id).created_at
    until(lambda: layer(pods, container_id).timestamp > created_at, "a count of the layer", 60)
    return layer(pods, container_id)
