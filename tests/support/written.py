# SPDX-License-Identifier: Apache-2.0
"""What a container has written: on the disk, and as its statistics have it."""

from __future__ import annotations

import subprocess
from pathlib import Path

from criagent.kernel.mount import mountinfo
from tests.support.cri_client import api
from tests.support.pods import Pods


def upper(container_id: str) -> Path:
    """The host's directory of what the container wrote."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        if f"/containers/{container_id}/rootfs " in line:
            options = dict(
                o.partition("=")[::2] for o in line.split(" - ")[1].split()[2].split(",")
            )
            return Path(options["upperdir"])
    raise AssertionError(f"{container_id} has no root")


def snapshot(container_id: str) -> Path:
    """The host's directory of the container's snapshot, with any driver that mounts directories."""
    (entry,) = [one for one in mountinfo() if one.target == str(rootfs(container_id))]
    if entry.fstype == "overlay":
        return upper(container_id).parent
    return Path("/var/lib/criagent/snapshots", Path(entry.root).parent.name)


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
