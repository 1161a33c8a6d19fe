# SPDX-License-Identifier: Apache-2.0
"""Volumes of pods with user namespaces: one owner on both sides, the node's mounts untouched."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from criagent.kernel.mount import mountinfo
from tests.support.cri_client import DEBIAN, api, container
from tests.support.mapped import mapped, mapping, volume
from tests.support.mapped_pods import words
from tests.support.node_state import ROOT
from tests.support.pods import Pods

pytestmark = pytest.mark.root


@pytest.fixture(params=["tmpfs", "ext4"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A directory on either file system of the node."""
    place = tmp_path / "volume" if request.param == "tmpfs" else ROOT / "test-volume"
    place.mkdir()
    yield place
    shutil.rmtree(place)


@pytest.mark.parametrize("handler", ["crun", "runc"])
def test_files_on_a_volume_have_one_owner_on_both_sides(
    pods: Pods, source: Path, handler: str
) -> None:
    (source / "theirs").touch()
    os.chown(source / "theirs", 33, 44)
    config = pods.config()
    mapped()(config)
    sandbox = pods.cri.run(config, handler=handler)
    container_id = pods.running(pod=(sandbox, config), change=volume(source))
    assert words(pods, container_id, "stat", "-c", "%u:%g", "/volume/theirs") == "33:44"
    words(pods, container_id, "sh", "-c", "touch /volume/mine && chown 5:6 /volume/mine")
    words(pods, container_id, "touch", "/volume/roots")
    facts = (source / "mine").stat(), (source / "roots").stat()
    assert [(f.st_uid, f.st_gid) for f in facts] == [(5, 6), (0, 0)]
    (told,) = pods.cri.status(container_id).mounts
    assert (list(told.uidMappings), list(told.gidMappings)) == ([mapping()], [mapping()])
    assert not [
        m for m in mountinfo() if f"/{container_id}/" in m.target and "/rootfs" not in m.target
    ]


@pytest.mark.parametrize("handler", ["crun", "runc"])
def test_a_volume_that_is_a_file_and_one_that_is_not_mapped(
    pods: Pods, source: Path, handler: str
) -> None:
    (source / "file").write_text("content")
    os.chown(source / "file", 9, 9)
    config = pods.config()
    mapped()(config)
    sandbox = pods.cri.run(config, handler=handler)

    def change(wanted: api.ContainerConfig) -> None:
        volume(source / "file", readonly=True)(wanted)
        wanted.mounts.add(container_path="/plain", host_path=str(source))

    container_id = pods.running(pod=(sandbox, config), change=change)
    assert words(pods, container_id, "stat", "-c", "%u:%g", "/volume") == "9:9"
    assert pods.cri.exec(container_id, "sh", "-c", "echo x > /volume").exit_code != 0
    assert words(pods, container_id, "stat", "-c", "%u:%g", "/plain/file") == "65534:65534"


@pytest.mark.parametrize("handler", ["crun", "runc"])
def test_a_volume_that_cannot_be_mapped_is_refused(pods: Pods, handler: str) -> None:
    config = pods.config()
    mapped()(config)
    sandbox = pods.cri.run(config, handler=handler)
    wanted = container("refused", ["true"])
    volume(Path("/proc"))(wanted)
    with pytest.raises(grpc.RpcError) as caught:
        pods.cri.create(sandbox, wanted, config)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "does not support id mapping" in (caught.value.details() or "")


@pytest.mark.parametrize("handler", ["crun", "runc"])
def test_an_image_volume_has_the_owners_of_its_image(pods: Pods, handler: str) -> None:
    config = pods.config()
    mapped()(config)
    sandbox = pods.cri.run(config, handler=handler)

    def change(wanted: api.ContainerConfig) -> None:
        for path, part in (("/whole", ""), ("/part", "opt")):
            mount = wanted.mounts.add(container_path=path, readonly=True, image_sub_path=part)
            mount.image.image = DEBIAN
            mount.uidMappings.append(mapping())
            mount.gidMappings.append(mapping())

    container_id = pods.running(pod=(sandbox, config), change=change)
    assert words(
        pods, container_id, "stat", "-c", "%u:%g", "/whole/opt/owned", "/part/owned/file"
    ) == ("1234:1234\n0:0")
    assert words(pods, container_id, "cat", "/part/owned/file") == "owned"
    assert pods.cri.exec(container_id, "touch", "/whole/new").exit_code != 0


def test_a_readonly_volume_is_so_with_all_below_it(pods: Pods, tmp_path: Path) -> None:
    below = tmp_path / "below"
    below.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "below", below], check=True)
    try:
        change = volume(tmp_path, readonly=True, recursive_read_only=True)
        container_id = pods.running(pod=pods.sandbox(mapped()), change=change)
        for path in ("/volume/new", "/volume/below/new"):
            assert b"Read-only" in pods.cri.exec(container_id, "touch", path).stderr
        pods.cri.remove_pod(pods.cri.pods()[0].id)
    finally:
        subprocess.run(["umount", below], check=True)


def test_volumes_below_a_volume_are_there_and_come_later_too(pods: Pods, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for place in (first, second):
        place.mkdir()
    for handler in ("crun", "runc"):
        subprocess.run(["mount", "-t", "tmpfs", "first", first], check=True)
        try:
            config = pods.config()
            mapped()(config)
            sandbox = pods.cri.run(config, handler=handler)
            change = volume(tmp_path, propagation=api.PROPAGATION_HOST_TO_CONTAINER)
            container_id = pods.running(pod=(sandbox, config), change=change)
            subprocess.run(["mount", "-t", "tmpfs", "second", second], check=True)
            try:
                mounts = words(pods, container_id, "cat", "/proc/mounts")
                assert "first /volume/first " in mounts
                assert "second /volume/second " in mounts
                pods.cri.remove_pod(sandbox)
            finally:
                subprocess.run(["umount", second], check=True)
        finally:
            subprocess.run(["umount", first], check=True)
