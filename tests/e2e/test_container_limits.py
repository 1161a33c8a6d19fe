# SPDX-License-Identifier: Apache-2.0
"""Limits of writable layers: by key and annotation, and refused where nothing can keep them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from tests.storage.grounds import file_system
from tests.support import agent
from tests.support.cri_client import BUSYBOX
from tests.support.pods import Pods

pytestmark = pytest.mark.root

CRIAGENT = ("/opt/venv/bin/python3", "-m", "criagent")
DISK = Path("/mnt/container-limits")
ANNOTATION = "storage.criagent.io/container-limit"
LIMIT = 4_000_000


def toml(driver: str, *lines: str) -> str:
    return "\n".join(("[storage]", f'root = "{DISK}/root"', f'driver = "{driver}"', *lines, ""))


@pytest.fixture
def limited(pods: Pods) -> Iterator[Pods]:
    """Pods of an agent on btrfs, each container of which is limited."""
    agent.stop()
    with file_system(DISK, "btrfs", size=200 << 20):
        keys = (f"container_limit_bytes = {LIMIT}", f'allowed_annotations = ["{ANNOTATION}"]')
        pods.cri = agent.start(toml("btrfs", *keys))
        pods.cri.pull(BUSYBOX)
        yield pods
        for sandbox in pods.cri.pods():
            pods.cri.remove_pod(sandbox.id)
        pods.cri.remove_image(BUSYBOX)
        pods.cri.close()
        agent.stop()
    pods.cri = agent.start()


def written(pods: Pods, container_id: str) -> tuple[int, str]:
    """How much of 20 MB the container could write, and what it was told."""
    script = "dd if=/dev/urandom of=/big bs=65536 count=320; stat -c %s /big"
    found = pods.cri.exec(container_id, "sh", "-c", script)
    return int(found.stdout), found.stderr.decode()


def test_a_container_writes_up_to_its_limit(limited: Pods) -> None:
    size, told = written(limited, limited.running("sleep", "1000"))
    assert 0 < size <= LIMIT
    assert "quota exceeded" in told
    pod = limited.sandbox(
        lambda pod: pod.annotations.update({ANNOTATION: "8M", f"{ANNOTATION}.free": "1Gi"})
    )
    size, _ = written(limited, limited.running("sleep", "1000", pod=pod))
    assert LIMIT < size <= 8_000_000

    def free(wanted: object) -> None:
        wanted.metadata.name = "free"  # type: ignore[attr-defined]

    assert written(limited, limited.running("sleep", "1000", pod=pod, change=free))[0] == 20 << 20


def test_a_malformed_annotation_fails_the_container_alone(limited: Pods) -> None:
    pod = limited.sandbox(lambda pod: pod.annotations.update({ANNOTATION: "much"}))
    with pytest.raises(grpc.RpcError) as caught:
        limited.running("sleep", "1000", pod=pod)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "'much' is not a size" in str(caught.value.details())
    assert limited.cri.containers() == []


@pytest.mark.parametrize("driver", ["overlay", "native"])
@pytest.mark.parametrize(
    ("line", "key"),
    [
        (f"container_limit_bytes = {LIMIT}", "storage.container_limit_bytes"),
        (f'allowed_annotations = ["{ANNOTATION}"]', "storage.allowed_annotations"),
    ],
)
def test_a_limit_that_nothing_keeps_is_refused_at_the_start(
    driver: str, line: str, key: str
) -> None:
    file = DISK.with_suffix(".toml")
    own = '[telemetry]\nmetrics_address = ""\n'
    with file_system(DISK, "overlay", "ext4"):
        socket = f'run_dir = "{DISK}/run"\nsocket = "{DISK}/own.sock"'
        file.write_text(toml(driver, line, socket) + own)
        done = subprocess.run(
            [*CRIAGENT, "--config", str(file), "serve"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        found = subprocess.run(
            [*CRIAGENT, "--config", str(file), "doctor", "--json"], capture_output=True, check=False
        )
    file.unlink()
    assert done.returncode == 1
    events = [json.loads(text) for text in done.stderr.splitlines()]
    (reason,) = [event["error"] for event in events if event["event"] == "not_started"]
    assert f"{key} is set, but the storage driver {driver} cannot limit" in reason
    assert "ext4 without project quotas" in reason
    assert "tune2fs -O project,quota -Q prjquota /dev/loop" in reason
    assert b"limits of writable layers" in found.stdout
    assert b"prjquota" in found.stdout
