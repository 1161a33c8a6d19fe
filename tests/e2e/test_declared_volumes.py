# SPDX-License-Identifier: Apache-2.0
"""Volumes that images declare (VOLUME): as containerd's TestVolumeCopyUp, TestVolumeOwnership and
TestUsernsVolumeCopyUp have them, by either handler, and what may stand in an image's way.
"""

from __future__ import annotations

import os
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from criagent._proto import admin_pb2, admin_pb2_grpc
from criagent.kernel.mount import parse_mountinfo
from tests.support import agent, image_builder
from tests.support.chosen_driver import DRIVER
from tests.support.cri_client import Cri, api, container
from tests.support.image_archives import archive, succeed
from tests.support.made_images import HANDLERS, ImageMaker, of
from tests.support.mapped import HOST, mapped
from tests.support.mapped_pods import init, words
from tests.support.mounts import bind, wants
from tests.support.pods import Pods
from tests.support.refusals import refused
from tests.support.waiting import until
from tests.support.written import counted, du, rootfs, snapshot

pytestmark = pytest.mark.root

INVALID = grpc.StatusCode.INVALID_ARGUMENT
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
SMALL = Path("/mnt/small-volumes")
handlers = pytest.mark.parametrize("handler", HANDLERS)


def declared(*paths: str) -> dict[str, dict[str, object]]:
    return {"Volumes": {path: {} for path in paths}}


def owned(name: str, **fields: object) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.mode, entry.uid, entry.gid, entry.mtime = 0o640, 33, 44, 1_000_000_000
    for key, value in fields.items():
        setattr(entry, key, value)
    return entry


def filled(made: image_builder.Layer) -> None:
    """/with has owners, modes, times, links, an attribute, a device; /empty has an owner."""
    made.directory("with", 0o2750, uid=33)
    made.entry(owned("with/file", size=8), b"content\n")
    made.directory("with/below", 0o1777, uid=33)
    made.file("with/below/program", b"#!/bin/sh\necho ran\n", 0o4755)
    made.file("with/marked", b"x", 0o644, xattrs={"user.mark": "kept"})
    made.hard_link("with/same", "with/file")
    made.symlink("with/link", "/etc/passwd")
    made.symlink("with/dangling", "nowhere")
    made.entry(owned("with/null", type=tarfile.CHRTYPE, devmajor=1, devminor=3))
    made.directory("empty", 0o700, uid=33)


def sources(pods: Pods, container_id: str) -> dict[str, Path]:
    """Directories of the node that are mounted in a container, by their place."""
    lines = (init(pods, container_id) / "mountinfo").read_text().splitlines()
    own = snapshot(container_id)
    return {
        entry.target: Path(own, *Path(entry.root).parts[-2:])
        for entry in parse_mountinfo(lines)
        if f"/{own.name}/volumes/" in entry.root
    }


def sandbox(
    pods: Pods, handler: str, change: Callable[[api.PodSandboxConfig], object] = lambda _: None
) -> tuple[str, api.PodSandboxConfig]:
    config = pods.config()
    change(config)
    return pods.cri.run(config, handler=handler), config


def readonly(config: api.ContainerConfig) -> None:
    config.linux.security_context.readonly_rootfs = True


@handlers
@pytest.mark.parametrize("userns", [False, True])
@pytest.mark.parametrize("change", [lambda _: None, readonly], ids=["writable", "read-only"])
def test_content_is_copied_with_owners_and_modes_and_can_be_written(
    pods: Pods,
    make_image: ImageMaker,
    handler: str,
    change: Callable[[api.ContainerConfig], object],
    *,
    userns: bool,
) -> None:
    image = make_image(filled, **declared("/with", "/empty", "/deep/er/new", "rel", "/a:b/../c"))
    pod = sandbox(pods, handler, mapped() if userns else lambda _: None)
    container_id = pods.running("sleep", "1000", pod=pod, change=of(image, change))

    def facts(path: str) -> str:
        return words(pods, container_id, "stat", "-c", "%u:%g %a", path)

    assert facts("/with") == "33:33 2750"
    assert facts("/with/file") == "33:44 640"
    assert facts("/with/below") == "33:33 1777"
    assert facts("/with/below/program") == "0:0 4755"
    assert facts("/empty") == "33:33 700"
    assert [facts(path) for path in ("/deep/er/new", "/rel", "/c")] == ["0:0 755"] * 3
    assert words(pods, container_id, "stat", "-c", "%Y %h %i", "/with/file").startswith(
        "1000000000 2 "
    )
    assert words(pods, container_id, "cat", "/with/file", "/with/same") == "content\ncontent"
    assert words(pods, container_id, "sh", "-c", "ls -l /with/link /with/dangling | wc -l") == "2"
    assert words(pods, container_id, "/with/below/program") == "ran"
    found = sources(pods, container_id)
    assert sorted(found) == ["/c", "/deep/er/new", "/empty", "/rel", "/with"]
    words(
        pods,
        container_id,
        "sh",
        "-c",
        "for v in /with /empty /deep/er/new /rel /c; do touch $v/new; done",
    )
    words(pods, container_id, "sh", "-c", "echo changed > /with/file")
    assert (found["/with"] / "file").read_text() == "changed\n"
    first = HOST if userns else 0
    assert (found["/with"] / "file").stat().st_uid == first + 33
    assert (found["/rel"] / "new").stat().st_uid == first
    assert os.getxattr(found["/with"] / "marked", "user.mark") == b"kept"
    assert (found["/with"] / "null").stat().st_rdev == os.makedev(1, 3)
    assert (rootfs(container_id) / "with/file").read_text() == "content\n"
    assert list(pods.cri.status(container_id).mounts) == []
    again = pods.running("sleep", "1000", pod=pod, change=of(image, change))
    assert words(pods, again, "cat", "/with/file") == "content"


@handlers
@pytest.mark.parametrize("path", ["/with", "/with/", "//with", "/link"])
def test_a_mount_of_the_request_is_used_instead(
    pods: Pods, make_image: ImageMaker, tmp_path: Path, handler: str, path: str
) -> None:
    def fill(made: image_builder.Layer) -> None:
        filled(made)
        made.symlink("link", "with")

    (tmp_path / "mine").touch()
    image = make_image(fill, **declared("/with"))
    mount = wants(bind(tmp_path, path))
    container_id = pods.running(
        "sleep", "1000", pod=sandbox(pods, handler), change=of(image, mount)
    )
    words(pods, container_id, "test", "-e", "/with/mine")
    assert sources(pods, container_id) == {}


@handlers
def test_a_volume_behind_links_stays_in_the_root(
    pods: Pods, make_image: ImageMaker, tmp_path: Path, handler: str
) -> None:
    """CVE-2022-23648: containerd copied files of the node into it."""
    (tmp_path / "secret").write_text("of the node")

    def fill(made: image_builder.Layer) -> None:
        made.symlink("out", "../" * 12 + str(tmp_path)[1:])
        made.symlink("in", "/srv/real")
        made.file("srv/real/file", b"content", 0o644)

    image = make_image(fill, **declared("/out", "/../../out/../in", "/out/secret"))
    container_id = pods.running("sleep", "1000", pod=sandbox(pods, handler), change=of(image))
    assert words(pods, container_id, "cat", "/in/file") == "content"
    assert words(pods, container_id, "ls", "/out") == "secret"  # a directory: the volume in it
    assert sorted(sources(pods, container_id)) == sorted(
        [str(tmp_path), f"{tmp_path}/secret", "/srv/real"]
    )
    assert (tmp_path / "secret").read_text() == "of the node"


@handlers
def test_kernel_file_systems_stay_what_they_are(
    pods: Pods, make_image: ImageMaker, handler: str
) -> None:
    """Images with systemd declare /sys/fs/cgroup."""
    image = make_image(**declared("/sys/fs/cgroup", "/proc/x", "/dev/shm", "/dev", "/run"))  # type: ignore[arg-type]
    container_id = pods.running("sleep", "1000", pod=sandbox(pods, handler), change=of(image))
    words(pods, container_id, "test", "-e", "/sys/fs/cgroup/cgroup.procs")
    words(pods, container_id, "test", "-c", "/dev/null")
    assert list(sources(pods, container_id)) == ["/run"]


@pytest.mark.parametrize(
    ("fill", "volumes", "text"),
    [
        (lambda made: made.file("data", b"x"), ["/data"], "has a file"),
        (lambda made: made.file("data", b"x"), ["/data/below"], "has a file"),
        (lambda _: None, ["/"], "cannot be mounted"),
        (lambda _: None, ["/x/.."], "cannot be mounted"),
        (lambda _: None, ["/a\0b"], "cannot be mounted"),
        (lambda made: made.symlink("data", "/proc"), ["/data"], "/proc"),
        (lambda made: made.symlink("data", "data"), ["/data"], "too many symlinks"),
        (lambda _: None, [f"/v{n}" for n in range(129)], "129 volumes"),
        (lambda _: None, ["/" + "n" * 300], "too long"),
    ],
)
def test_what_cannot_be_a_volume_is_refused_with_its_cure(
    pods: Pods,
    make_image: ImageMaker,
    fill: Callable[[image_builder.Layer], None],
    volumes: list[str],
    text: str,
) -> None:
    image = make_image(fill, **declared(*volumes))
    pod, config = pods.sandbox()
    wanted = container("bad", ["sleep", "1"], image)
    refused(lambda: pods.cri.create(pod, wanted, config), INVALID, text)
    assert pods.cri.containers() == []


@pytest.mark.parametrize("userns", [False, True])
def test_volumes_are_counted_with_the_writable_layer(
    pods: Pods, make_image: ImageMaker, *, userns: bool
) -> None:
    image = make_image(filled, **declared("/with", "/new"))
    pod = pods.sandbox(mapped() if userns else lambda _: None)
    script = "head -c 3000000 /dev/zero > /new/big; touch /other; sync; touch /done; sleep 1000"
    container_id = pods.running("sh", "-c", script, pod=pod, change=of(image))
    until((rootfs(container_id) / "done").exists, "the files", 120)
    found, own = counted(pods, container_id), snapshot(container_id)
    if DRIVER == "btrfs":  # what came with the image does not count
        assert 3_000_000 < found.used_bytes.value < 3_000_000 + (64 << 10)
        inodes = du(own / "volumes")[1]
        assert inodes + 2 <= found.inodes_used.value < inodes + du(own / "fs")[1]
        return
    parts = [du(own / "fs"), du(own / "volumes")]
    assert found.used_bytes.value == sum(used for used, _ in parts) > 3_000_000
    assert found.inodes_used.value == sum(inodes for _, inodes in parts)


@pytest.fixture
def mode(request: pytest.FixtureRequest, cri: Cri) -> Iterator[Cri]:
    """An agent with another image_volumes."""
    agent.stop()
    yield agent.start(f'[runtime]\nimage_volumes = "{request.param}"\n')
    with_mode = Cri()
    for pod in with_mode.pods():
        with_mode.remove_pod(pod.id)
    with_mode.close()
    agent.stop()
    agent.start().close()


@pytest.mark.parametrize("mode", ["mkdir"], indirect=True)
@pytest.mark.parametrize("userns", [False, True])
def test_mkdir_makes_directories_of_the_user_in_the_root(
    pods: Pods, mode: Cri, make_image: ImageMaker, *, userns: bool
) -> None:
    pods.cri = mode
    image = make_image(filled, User="7:8", **declared("/with", "/deep/er/new", "/sys/x"))
    pod = pods.sandbox(mapped() if userns else lambda _: None)
    container_id = pods.running("sleep", "1000", pod=pod, change=of(image))
    assert words(pods, container_id, "stat", "-c", "%u:%g %a", "/deep/er/new") == "7:8 755"
    assert words(pods, container_id, "stat", "-c", "%u:%g %a", "/with") == "33:33 2750"
    words(pods, container_id, "touch", "/deep/er/new/file")
    assert (rootfs(container_id) / "deep/er/new/file").exists()
    assert sources(pods, container_id) == {}


@pytest.mark.parametrize("mode", ["ignore"], indirect=True)
def test_ignore_makes_nothing(pods: Pods, mode: Cri, make_image: ImageMaker) -> None:
    pods.cri = mode
    image = make_image(lambda made: made.file("data", b"x"), **declared("/data", "/new", "/"))
    container_id = pods.running("sleep", "1000", change=of(image))
    assert pods.cri.exec(container_id, "test", "-e", "/new").exit_code == 1
    assert sources(pods, container_id) == {}


def test_a_crash_leaves_nothing_of_a_volume(pods: Pods, make_image: ImageMaker) -> None:
    image = make_image(filled, **declared("/with", "/new"))
    pod, config = pods.sandbox()
    agent.stop()
    pods.cri = agent.start('[debug]\nkill_at = "container-create:declared-volumes"\n')
    with pytest.raises(grpc.RpcError):
        pods.cri.create(pod, container("c", ["sleep", "1000"], image), config)
    until(agent.died, "the crash")
    pods.cri = agent.start()
    assert pods.cri.containers() == []
    container_id = pods.running("sleep", "1000", pod=(pod, config), change=of(image))
    assert words(pods, container_id, "cat", "/with/file") == "content"


def test_a_full_disk_is_said_and_leaves_nothing(cri: Cri) -> None:
    agent.stop()
    SMALL.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "small", SMALL], check=True)
    small = agent.start(f'[storage]\nroot = "{SMALL}/root"\ndriver = "overlay"\n')
    try:
        made = image_builder.Layer()
        made.program(Path("/usr/bin/sleep"), "usr/bin/sleep")
        made.file("data/big", os.urandom(8 << 20))
        succeed(
            "import", "-", data=archive([made.tar()], "registry.test/full:1", **declared("/data"))
        )
        with (SMALL / "filler").open("wb") as filler:
            filler.write(bytes(free(SMALL) - (4 << 20)))
        config = api.PodSandboxConfig(
            metadata=api.PodSandboxMetadata(name="full", uid="full", namespace="default")
        )
        pod = small.run(config)
        before = free(SMALL)
        wanted = container("c", ["sleep", "1000"], "registry.test/full:1")
        refused(
            lambda: small.create(pod, wanted, config), EXHAUSTED, "copying volume '/data' failed"
        )
        admin_pb2_grpc.AdminStub(small.channel).Prune(admin_pb2.PruneRequest(), timeout=60)
        assert free(SMALL) > before - (1 << 20)  # the database may have grown
        (SMALL / "filler").unlink()
        small.start(small.create(pod, wanted, config))
        small.remove_pod(pod)
    finally:
        small.close()
        agent.stop()
        subprocess.run(["umount", SMALL], check=True)
        SMALL.rmdir()
        agent.start().close()


def free(place: Path) -> int:
    facts = os.statvfs(place)
    return facts.f_bavail * facts.f_frsize
