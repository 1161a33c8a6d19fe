# SPDX-License-Identifier: Apache-2.0
"""Images whose symlinks stand in the way of mounts: led within the root, or refused; both handlers.

The node itself is looked at after every hostile image: CVE-2026-41579 made device links in it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from tests.support import image_builder
from tests.support.cri_client import api, container
from tests.support.made_images import HANDLERS, ImageMaker, of
from tests.support.mounts import bind, wants
from tests.support.pods import Pods
from tests.support.refusals import refused

pytestmark = pytest.mark.root

INVALID = grpc.StatusCode.INVALID_ARGUMENT
UP = "../" * 12
handlers = pytest.mark.parametrize("handler", HANDLERS)


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """A directory of the node that nothing may touch."""
    top = tmp_path / "canary"
    top.mkdir()
    for name in ("ptmx", "stdin", "hosts", "null"):
        (top / name).write_text(f"the node's {name}")
    return top


def seen(top: Path) -> dict[str, tuple[int, str]]:
    return {path.name: (path.lstat().st_mode, path.read_text()) for path in top.iterdir()}


def links(*pairs: tuple[str, str]) -> Callable[[image_builder.Layer], None]:
    def fill(layer: image_builder.Layer) -> None:
        for path, target in pairs:
            layer.symlink(path, target)

    return fill


def sandbox(pods: Pods, handler: str) -> tuple[str, api.PodSandboxConfig]:
    config = pods.config()
    return pods.cri.run(config, handler=handler), config


def create_refused(
    pods: Pods, pod: tuple[str, api.PodSandboxConfig], wanted: api.ContainerConfig, words: str
) -> None:
    refused(lambda: pods.cri.create(pod[0], wanted, pod[1]), INVALID, words)


def output(pods: Pods, container_id: str, script: str) -> str:
    done = pods.cri.exec(container_id, "sh", "-c", script)
    assert done.exit_code == 0, done.stderr
    return str(done.stdout.decode())


@pytest.mark.parametrize("name", ["dev", "proc", "sys"])
@pytest.mark.parametrize("kind", ["up", "absolute", "inside", "dangling", "loop", "file"])
def test_an_image_whose_kernel_directory_is_none_is_refused(
    pods: Pods, make_image: ImageMaker, canary: Path, name: str, kind: str
) -> None:
    target = {
        "up": UP + str(canary)[1:],
        "absolute": str(canary),
        "inside": "etc",
        "dangling": "nowhere",
        "loop": name,
    }.get(kind)

    def fill(layer: image_builder.Layer) -> None:
        if target is None:
            layer.file(name, b"no directory")
        else:
            layer.symlink(name, target)

    image = make_image(fill)
    before = seen(canary)
    wanted = container("bad", ["sleep", "1"], image)
    for handler in HANDLERS:
        with_handler = sandbox(pods, handler)
        create_refused(pods, with_handler, wanted, f": /{name} is a ")
    assert seen(canary) == before
    assert pods.cri.containers() == []


@handlers
@pytest.mark.parametrize(
    ("target", "path", "place"),
    [
        ("/run", "/var/run/secrets/token", "/run/secrets/token"),
        ("../run", "/var/run", "/run"),
        (UP + "data", "/var/run/x", "/data/x"),
        ("nowhere/deep", "/var/run/x", "/var/nowhere/deep/x"),
        ("../one", "/var/run/x", "/two/x"),
    ],
)
def test_a_target_behind_links_is_mounted_where_they_lead(
    pods: Pods,
    make_image: ImageMaker,
    tmp_path: Path,
    handler: str,
    target: str,
    path: str,
    place: str,
) -> None:
    (tmp_path / "file").write_text("mounted")
    image = make_image(links(("var/run", target), ("one", "/two")))
    mount = wants(bind(tmp_path, path))
    container_id = pods.running(
        "sleep", "1000", pod=sandbox(pods, handler), change=of(image, mount)
    )
    assert output(pods, container_id, f"cat {path}/file {place}/file") == "mountedmounted"
    assert f" {place} " in output(pods, container_id, "cat /proc/self/mountinfo")
    assert [m.container_path for m in pods.cri.status(container_id).mounts] == [path]


@handlers
def test_files_of_the_pod_behind_links_stay_in_the_root(
    pods: Pods, make_image: ImageMaker, canary: Path, handler: str
) -> None:
    image = make_image(
        links(
            ("etc/hosts", UP + f"{str(canary)[1:]}/hosts"),
            ("etc/resolv.conf", "../run/systemd/resolve/stub-resolv.conf"),
            ("etc/hostname", "/var/hostname"),
        )
    )
    before = seen(canary)
    pod = sandbox(pods, handler)
    container_id = pods.running("sleep", "1000", pod=pod, change=of(image))
    name = output(pods, container_id, "hostname")
    assert output(pods, container_id, "cat /etc/hostname /var/hostname") == name * 2
    assert "nameserver" in output(pods, container_id, "cat /run/systemd/resolve/stub-resolv.conf")
    output(pods, container_id, "grep -q localhost /etc/hosts")
    assert seen(canary) == before


@pytest.mark.parametrize(
    ("pairs", "path"),
    [
        ([("data", "/proc")], "/data"),
        ([("data", "proc/self")], "/data/attr"),
        ([("data", "/proc/sys")], "/data/kernel"),
        ([("data", "a"), ("a", "b"), ("b", UP + "proc/1")], "/data/fd"),
        ([("data", "/sys/kernel")], "/data"),
        ([("data", "sys/fs")], "/data/cgroup"),
        ([("data", "/dev")], "/data"),
        ([("data", "/dev")], "/data/null"),
        ([("log", "/dev/stdout")], "/log"),
        ([("data", "/")], "/data"),
        ([("data", "loop"), ("loop", "data")], "/data/x"),
    ],
)
def test_a_link_that_leads_a_mount_onto_kernel_files_is_refused(
    pods: Pods,
    make_image: ImageMaker,
    tmp_path: Path,
    pairs: list[tuple[str, str]],
    path: str,
) -> None:
    image = make_image(links(*pairs))
    wanted = container("bad", ["sleep", "1"], image)
    wanted.mounts.append(bind(tmp_path, path))
    for handler in HANDLERS:
        create_refused(pods, sandbox(pods, handler), wanted, path)
    assert pods.cri.containers() == []


@handlers
def test_shared_memory_by_its_old_name_takes_a_volume(
    pods: Pods, make_image: ImageMaker, tmp_path: Path, handler: str
) -> None:
    (tmp_path / "mine").touch()
    image = make_image(links(("run/shm", "/dev/shm")))
    mount = wants(bind(tmp_path, "/run/shm"))
    container_id = pods.running(
        "sleep", "1000", pod=sandbox(pods, handler), change=of(image, mount)
    )
    output(pods, container_id, "test -e /dev/shm/mine")


@handlers
def test_a_link_in_a_volume_leads_no_other_mount_onto_proc(
    pods: Pods, make_image: ImageMaker, tmp_path: Path, handler: str
) -> None:
    """What an init container may leave in a volume that two share."""
    shared, other = tmp_path / "shared", tmp_path / "other"
    shared.mkdir()
    other.mkdir()
    (other / "file").write_text("mounted")
    (shared / "bad").symlink_to("/proc")
    (shared / "good").symlink_to("/srv/place")
    image = make_image()
    pod = sandbox(pods, handler)
    wanted = container("bad", ["sleep", "1"], image)
    wanted.mounts.extend([bind(other, "/data/bad/self"), bind(shared, "/data")])
    refused(lambda: pods.cri.create(pod[0], wanted, pod[1]), INVALID, "/proc/self")
    mounts = wants(bind(other, "/data/good"), bind(shared, "/data"))
    container_id = pods.running("sleep", "1000", pod=pod, change=of(image, mounts))
    assert output(pods, container_id, "cat /data/good/file /srv/place/file") == "mountedmounted"


@handlers
def test_an_outer_mount_never_hides_an_inner_one_that_a_link_names(
    pods: Pods, make_image: ImageMaker, tmp_path: Path, handler: str
) -> None:
    outer, inner = tmp_path / "outer", tmp_path / "inner"
    outer.mkdir()
    inner.mkdir()
    (inner / "file").write_text("mounted")
    image = make_image(links(("short", "/a/b/c")))
    mounts = wants(bind(inner, "/short"), bind(outer, "/a/b"))
    container_id = pods.running(
        "sleep", "1000", pod=sandbox(pods, handler), change=of(image, mounts)
    )
    assert output(pods, container_id, "cat /a/b/c/file") == "mounted"


@pytest.mark.parametrize(
    "place",
    ["/proc/self/fd/8", "/proc/1/cwd", "/dev/fd/7", "/proc/self/../self/fd/7", "/proc/self/root"],
)
def test_a_working_directory_among_open_files_is_refused_behind_links_too(
    pods: Pods, make_image: ImageMaker, place: str
) -> None:
    image = make_image(links(("work", place)), WorkingDir="/work")
    for handler in HANDLERS:
        pod = sandbox(pods, handler)
        wanted = container("bad", ["sleep", "1"], image)
        create_refused(pods, pod, wanted, "working directory")
        wanted.working_dir = place
        create_refused(pods, pod, wanted, "working directory")


@handlers
def test_a_device_behind_a_link_is_made_in_the_root(
    pods: Pods, make_image: ImageMaker, canary: Path, handler: str
) -> None:
    image = make_image(links(("opt", UP + str(canary)[1:])))
    before = seen(canary)

    def device(config: api.ContainerConfig) -> None:
        config.devices.add(host_path="/dev/zero", container_path="/opt/zero", permissions="r")

    container_id = pods.running(
        "sleep", "1000", pod=sandbox(pods, handler), change=of(image, device)
    )
    assert output(pods, container_id, "head -c 2 /opt/zero | wc -c").strip() == "2"
    assert seen(canary) == before


def test_a_name_that_is_not_text_behind_a_link_is_refused_in_words(
    pods: Pods, make_image: ImageMaker, tmp_path: Path
) -> None:
    image = make_image(links(("data", os.fsdecode(b"\xff\xfe"))))
    pod, config = pods.sandbox()
    wanted = container("bad", ["sleep", "1"], image)
    wanted.mounts.append(bind(tmp_path, "/data"))
    refused(lambda: pods.cri.create(pod, wanted, config), INVALID, "not UTF-8")


def test_the_runtime_is_handed_paths_without_links(
    pods: Pods, make_image: ImageMaker, tmp_path: Path
) -> None:
    image = make_image(links(("var/run", "/run")))
    change = of(image, wants(bind(tmp_path, "/var/run/here")))
    container_id = pods.running("sleep", "1000", change=change)
    spec = json.loads(Path(f"/run/criagent/containers/{container_id}/config.json").read_text())
    places = [mount["destination"] for mount in spec["mounts"]]
    assert "/run/here" in places
    assert "/var/run/here" not in places
