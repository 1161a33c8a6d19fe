# SPDX-License-Identifier: Apache-2.0
# vm: limit=3600 seconds=700
"""Limits of writable layers on file systems with project quotas, which test nodes do not have."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from criagent.kernel import project_quota
from tests.support.cri_client import BUSYBOX, Cri, api
from tests.support.mapped import mapped
from tests.support.pods import Pods
from tests.support.storage_suite import passes
from tests.support.units import show, systemctl
from tests.support.vm_fixtures import VmPods
from tests.support.waiting import until

PLACE, DROP_IN = Path("/mnt/limited"), Path("/etc/criagent/config.d/limited.toml")
ANNOTATION = "storage.criagent.io/container-limit"
LIMIT = 4_000_000
FIRST = 0x60000000
MKFS = {
    "ext4": ["mkfs.ext4", "-q", "-O", "project,quota", "-E", "quotatype=prjquota"],
    "xfs": ["mkfs.xfs", "-q"],
}
# xfs takes the limit of a project for the size of a disk, ext4 for a quota
FULL = {"ext4": "quota exceeded", "xfs": "No space left"}


def config(driver: str) -> str:
    return (
        f'[storage]\nroot = "{PLACE}/{driver}"\ndriver = "{driver}"\n'
        f'container_limit_bytes = {LIMIT}\nallowed_annotations = ["{ANNOTATION}"]\n'
    )


@pytest.fixture(params=["ext4", "xfs"])
def disk(request: pytest.FixtureRequest) -> Iterator[str]:
    """A file system with project quotas, mounted at `PLACE`."""
    kind: str = request.param
    if shutil.which(MKFS[kind][0]) is None:
        pytest.skip(f"this machine has no {MKFS[kind][0]}")
    image = Path("/var/tmp/limited.img")
    with image.open("wb") as file:
        file.truncate(400 << 20)
    subprocess.run([*MKFS[kind], image], check=True)
    PLACE.mkdir(exist_ok=True)
    subprocess.run(["mount", "-o", "loop,prjquota", image, PLACE], check=True)
    yield kind
    subprocess.run(["umount", PLACE], check=True)
    image.unlink()
    PLACE.rmdir()


@pytest.fixture(params=["overlay", "native"])
def limited(disk: str, pods: VmPods, request: pytest.FixtureRequest) -> Iterator[VmPods]:
    """Pods of a service whose containers are limited."""
    DROP_IN.parent.mkdir(exist_ok=True)
    DROP_IN.write_text(config(request.param))
    restart(pods)
    pods.cri.pull(BUSYBOX, timeout=300)
    yield pods
    for sandbox in pods.cri.pods():
        pods.cri.remove_pod(sandbox.id)
    DROP_IN.unlink()
    restart(pods)


def restart(pods: Pods) -> None:
    systemctl("restart", "criagent")
    assert show("criagent", "ActiveState") == "active"
    pods.cri.close()
    pods.cri = Cri()


def projects() -> list[project_quota.Project]:
    """Those of the agent that have a limit."""
    fd = os.open(PLACE, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return [one for one in project_quota.projects(fd, FIRST, 2**32 - 2) if one.limit_bytes]
    finally:
        os.close(fd)


def written(pods: Pods, container_id: str, megabytes: int, path: str = "/big") -> tuple[int, str]:
    """How many bytes of as many the container could write, and what it was told."""
    script = f"dd if=/dev/zero of={path} bs=65536 count={megabytes * 16}; stat -c %s {path}"
    found = pods.cri.exec(container_id, "sh", "-c", script)
    return int(found.stdout), found.stderr.decode()


def annotated(size: str) -> Callable[[api.PodSandboxConfig], object]:
    return lambda pod: pod.annotations.update({ANNOTATION: size})


def test_a_limit_holds_for_each_container_and_goes_with_it(limited: VmPods, disk: str) -> None:
    pod = limited.sandbox()
    first, second = (limited.running("sleep", "100000", pod=pod) for _ in range(2))
    size, told = written(limited, first, 10)
    assert LIMIT * 0.9 < size <= LIMIT
    assert FULL[disk] in told
    assert written(limited, second, 2)[0] == 2 << 20
    larger = limited.running("sleep", "100000", pod=limited.sandbox(annotated("8M")))
    assert 7_000_000 < written(limited, larger, 20)[0] <= 8_000_000
    assert len(projects()) == 3
    assert len({one.id for one in projects()}) == 3
    limited.cri.stop(first)
    limited.cri.remove(first)
    until(lambda: len(projects()) == 2, "the end of the limit", 60)


def test_a_limit_holds_in_a_user_namespace_and_after_a_restart(limited: VmPods, disk: str) -> None:
    wanted = limited.config()
    mapped()(wanted)
    pod = limited.cri.run(wanted), wanted
    container_id = limited.running("sleep", "100000", pod=pod)
    restart(limited)
    size, told = written(limited, container_id, 10)
    assert LIMIT * 0.9 < size <= LIMIT
    assert FULL[disk] in told
    assert limited.cri.exec(container_id, "rm", "/big").exit_code == 0
    assert written(limited, container_id, 2)[0] == 2 << 20


@pytest.mark.timeout(1500)
def test_sigkill_at_every_crash_point_of_a_limit(capsys: pytest.CaptureFixture[str]) -> None:
    output = passes("of_a_limit", ("crashes",), capsys)
    assert "4 passed" in output
