# SPDX-License-Identifier: Apache-2.0
"""What a container has written, as its statistics and ImageFsInfo tell it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.chosen_driver import DRIVER
from tests.support.cri_client import api
from tests.support.pods import Pods
from tests.support.waiting import until
from tests.support.written import counted, du, layer, upper

pytestmark = pytest.mark.root

SYNC_S = 120  # sync waits for every disk of the machine


def test_the_first_answer_is_what_du_says(pods: Pods, tmp_path: Path) -> None:
    script = """
    mkdir -p /data/a/b; head -c 3000000 /dev/zero > /data/big; ln /data/big /data/a/same
    for i in $(seq 100); do echo $i > /data/a/b/$i; done
    ln -s /etc /data/link; rm /etc/group; head -c 9000000 /dev/zero > /volume/not-counted
    sync; echo done; sleep 1000
    """
    container_id = pods.running(
        "sh",
        "-c",
        script,
        change=lambda c: c.mounts.add(container_path="/volume", host_path=str(tmp_path)),
    )
    until(lambda: "done" in pods.log(container_id), "the files", SYNC_S)
    found = counted(pods, container_id)
    assert (found.used_bytes.value, found.inodes_used.value) == du(upper(container_id))
    assert found.used_bytes.value > 3_000_000
    assert found.used_bytes.value < 5_000_000 or DRIVER == "native"  # whose copy counts whole
    assert found.fs_id.mountpoint == "/var/lib/criagent/snapshots"
    assert found.timestamp > pods.cri.status(container_id).started_at
    assert layer(pods, container_id) == found  # kept, with the time at which it was counted
    info = pods.cri.image.ImageFsInfo(api.ImageFsInfoRequest())
    (images,), (containers,) = info.image_filesystems, info.container_filesystems
    assert containers.used_bytes.value == found.used_bytes.value
    assert containers.inodes_used.value == found.inodes_used.value
    assert images.used_bytes.value > containers.used_bytes.value


def test_lists_answer_while_a_large_layer_is_counted(pods: Pods) -> None:
    script = """
    mkdir /many; cd /many
    for i in $(seq 40); do mkdir $i; (cd $i; seq 500 | xargs touch); done
    echo done; sleep 1000
    """
    container_id = pods.running("sh", "-c", script)
    small = pods.running()
    until(lambda: "done" in pods.log(container_id), "the files", 60)
    for _ in range(20):
        stats = pods.cri.runtime.ListContainerStats(api.ListContainerStatsRequest()).stats
        assert {one.attributes.id for one in stats} == {container_id, small}
        pods.cri.containers()
    inodes = counted(pods, container_id).inodes_used.value
    assert inodes == du(upper(container_id))[1] > 20_040
    assert layer(pods, small).inodes_used.value == du(upper(small))[1]


def test_an_ended_container_keeps_its_figures(pods: Pods) -> None:
    container_id = pods.running("sh", "-c", "head -c 500000 /dev/zero > /file; sync")
    until(lambda: pods.cri.status(container_id).state == api.CONTAINER_EXITED, "the end", SYNC_S)
    used = counted(pods, container_id).used_bytes.value
    assert used == du(upper(container_id))[0] > 490_000


def test_what_a_removed_container_wrote_is_freed_without_anybodys_command(pods: Pods) -> None:
    container_id = pods.running(
        "sh", "-c", "head -c 30000000 /dev/zero > /file; sync; exec sleep 1000"
    )
    until(lambda: layer(pods, container_id).used_bytes.value > 29_000_000, "the file", SYNC_S)
    place = upper(container_id).parent
    pods.cri.remove(container_id)
    trash = place.parent / "trash"
    until(lambda: not list(trash.iterdir()), "the deletion")
    assert not place.exists()
