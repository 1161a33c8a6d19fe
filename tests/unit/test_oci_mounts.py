# SPDX-License-Identifier: Apache-2.0
"""Mounts: their order and options, and host paths looked at without being blocked or fooled."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import stat
import sys
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from criagent.base.errors import InvalidRequestError, TimedOutError
from criagent.kernel.mount import MountEntry, mountinfo
from criagent.model.common import MountPropagation
from criagent.model.container import (
    Container,
    ContainerId,
    ContainerMetadata,
    ContainerSecurity,
    ContainerSpec,
    ContainerUser,
    Mount,
)
from criagent.model.image import Image, ImageConfig
from criagent.model.sandbox import Sandbox, SandboxId, SandboxMetadata, SandboxSpec
from criagent.runtime.node.facts import NodeFacts
from criagent.runtime.spec.inputs import ContainerNamespaces, PodFiles, ResolvedMount, SpecInputs
from criagent.runtime.spec.mounts.host_paths import HostPaths, local_path
from criagent.runtime.spec.mounts.oci import oci_mounts, rootfs_propagation

PRIVATE, SLAVE, SHARED = MountPropagation
POD_FILES = PodFiles(
    resolv_conf=Path("/run/s/resolv.conf"),
    hostname=Path("/run/s/hostname"),
    hosts=Path("/run/s/hosts"),
    shm=Path("/run/s/shm"),
)


def bind(
    target: str, source: str = "/srv", propagation: str = "rprivate", **fields: Any
) -> ResolvedMount:
    request = Mount(container_path=target, host_path=source, **fields)
    return ResolvedMount(request=request, source=source, propagation=propagation)  # type: ignore[arg-type]


def inputs(*mounts: ResolvedMount, **security: Any) -> SpecInputs:
    spec = ContainerSpec(
        metadata=ContainerMetadata(name="c"), image="i", security=ContainerSecurity(**security)
    )
    pod = SandboxSpec(metadata=SandboxMetadata(name="p", uid="u", namespace="n"))
    container = Container(
        id=ContainerId("1" * 64),
        sandbox_id=SandboxId("0" * 64),
        spec=spec,
        created_at_ns=1,
        boot_id="b",
        handler="crun",
    )
    return SpecInputs(
        container=container,
        sandbox=Sandbox(id=container.sandbox_id, spec=pod, created_at_ns=1, boot_id="b"),
        image=Image(id="i", manifest_digest="d", config=ImageConfig(), layers=()),
        user=ContainerUser(uid=0, gid=0),
        rootfs=Path("/run/c/rootfs"),
        namespaces=ContainerNamespaces(network=None, ipc=None, uts=None, pid="new"),
        mounts=mounts,
        devices=(),
        pod_files=POD_FILES,
        cgroups_path="/p/c",
        hostname="h",
        seccomp=None,
        apparmor="",
        node=NodeFacts(capabilities=frozenset()),
    )


def targets(*mounts: ResolvedMount) -> list[str]:
    return [mount["destination"] for mount in oci_mounts(inputs(*mounts))]


def mount_at(target: str, *mounts: ResolvedMount, **security: Any) -> dict[str, Any]:
    found = [m for m in oci_mounts(inputs(*mounts, **security)) if m["destination"] == target]
    assert len(found) == 1
    return found[0]


def test_a_container_without_mounts_has_the_usual_ones() -> None:
    assert targets() == [
        "/proc",
        "/dev",
        "/dev/pts",
        "/dev/mqueue",
        "/sys",
        "/sys/fs/cgroup",
        "/dev/shm",
        "/etc/resolv.conf",
        "/etc/hostname",
        "/etc/hosts",
    ]


@pytest.mark.parametrize("target", ["/sys", "/sys/fs/cgroup"])
def test_kernel_trees_are_read_only_unless_privileged(target: str) -> None:
    assert "ro" in mount_at(target)["options"]
    assert "rw" in mount_at(target, privileged=True)["options"]
    for option in ("nosuid", "noexec", "nodev"):
        assert option in mount_at(target, privileged=True)["options"]


def test_the_nodes_cgroup_tree_is_bound_and_never_mounted_anew() -> None:
    """A mount outside of cgroup namespaces sets the options of the node's own mount."""
    own, nodes = mount_at("/sys/fs/cgroup"), mount_at("/sys/fs/cgroup", privileged=True)
    assert own["type"] == "cgroup"
    assert (nodes["type"], nodes["source"]) == ("bind", "/sys/fs/cgroup")
    assert "rbind" in nodes["options"]


@pytest.mark.parametrize("target", ["/etc/resolv.conf", "/etc/hostname", "/etc/hosts"])
def test_pod_files_are_writable_as_the_root_is(target: str) -> None:
    safe = ["nosuid", "noexec", "nodev"]
    assert mount_at(target)["options"] == ["rbind", "rprivate", "rw", *safe]
    assert mount_at(target, readonly_rootfs=True)["options"] == ["rbind", "rprivate", "ro", *safe]


def test_shared_memory_is_the_pods_and_stays_writable() -> None:
    shm = mount_at("/dev/shm", readonly_rootfs=True)
    assert shm["source"] == "/run/s/shm"
    assert {"rw", "nosuid", "noexec", "nodev"} <= set(shm["options"])


@pytest.mark.parametrize(
    "target", ["/etc/hosts", "/dev/shm", "/sys/fs/cgroup", "/sys", "/etc/hosts/", "//etc//hosts"]
)
def test_a_requested_mount_replaces_ours(target: str) -> None:
    clean = "/" + "/".join(part for part in target.split("/") if part)
    assert mount_at(clean, bind(target))["source"] == "/srv"


def test_a_requested_dev_brings_its_own_terminals() -> None:
    found = targets(bind("/dev", "/dev"))
    assert "/dev/pts" not in found
    assert "/dev/mqueue" not in found
    assert found.index("/dev/shm") > found.index("/dev")


def test_outer_mounts_come_before_inner_ones() -> None:
    found = targets(bind("/a/b/c"), bind("/etc"), bind("/a"), bind("x"), bind("/a/b"))
    binds = [t for t in found if t.startswith("/a")]
    assert binds == ["/a", "/a/b", "/a/b/c"]
    assert found.index("/etc") < found.index("/etc/hosts")
    assert "/x" in found


@pytest.mark.parametrize(
    ("fields", "propagation", "options"),
    [
        ({}, "rprivate", ["rbind", "rprivate", "rw"]),
        ({"readonly": True}, "rslave", ["rbind", "rslave", "ro"]),
        ({"readonly": True, "recursive_read_only": True}, "rprivate",
         ["rbind", "rprivate", "rro", "ro"]),
        ({"options": ("noexec",)}, "rshared", ["rbind", "rshared", "rw", "noexec"]),
    ],
)  # fmt: skip
def test_options_of_a_requested_mount(
    fields: dict[str, Any], propagation: str, options: list[str]
) -> None:
    mount = mount_at("/x", bind("/x", "/srv", propagation, **fields))
    assert mount == {"destination": "/x", "type": "bind", "source": "/srv", "options": options}


@pytest.mark.parametrize(
    ("wanted", "root"),
    [
        ((), ""),
        (("rprivate",), ""),
        (("rprivate", "rslave"), "rslave"),
        (("rslave", "rshared", "rprivate"), "rshared"),
    ],
)
def test_the_root_is_as_open_as_its_most_open_mount(wanted: tuple[str, ...], root: str) -> None:
    assert rootfs_propagation(bind("/x", "/srv", item) for item in wanted) == root


# ---- host paths


def entry(target: str, fstype: str = "ext4", *tags: str) -> MountEntry:
    return MountEntry(
        root="/",
        target=target,
        options=frozenset(),
        tags=tags,
        fstype=fstype,
        source="none",
    )


ROOT = entry("/", "ext4", "shared:1")


@pytest_asyncio.fixture
async def paths() -> AsyncIterator[HostPaths]:
    with ThreadPoolExecutor(1) as pool:
        yield HostPaths(fs=pool, own=(Path("/var/lib/agent"),), table=lambda _: [ROOT])


def request(host: Path | str, **fields: Any) -> Mount:
    return Mount(container_path="/x", host_path=str(host), **fields)


async def source(paths: HostPaths, host: Path | str, **fields: Any) -> str:
    (found,) = await paths.resolve([request(host, **fields)])
    return found.source


async def test_no_mounts_need_no_look(paths: HostPaths) -> None:
    assert await paths.resolve([]) == ()


async def test_existing_files_and_directories_are_their_own_source(
    paths: HostPaths, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    assert await source(paths, tmp_path / "file") == str(tmp_path / "file")
    assert await source(paths, f"{tmp_path}//./") == str(tmp_path)
    assert await source(paths, "/") == "/"


async def test_missing_directories_are_made(paths: HostPaths, tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        await source(paths, tmp_path / "a/b/c")
    finally:
        os.umask(old)
    for made in ("a", "a/b", "a/b/c"):
        assert stat.S_IMODE((tmp_path / made).stat().st_mode) == 0o755


async def test_links_are_resolved_as_the_kernel_does(paths: HostPaths, tmp_path: Path) -> None:
    for made in ("real/deep", "other/deep"):
        (tmp_path / made).mkdir(parents=True)
    links = {
        "absolute": str(tmp_path / "real"),
        "relative": "real/deep",
        "chain": "absolute/deep",
        "up": "relative/../../other",  # ".." after a link leaves the link's target, not the link
        "dot": "./real/.",
    }
    for name, target in links.items():
        (tmp_path / name).symlink_to(target)
    for path in (*links, "absolute/deep", "up/deep", "chain/..", "relative/../deep"):
        expected = os.path.realpath(tmp_path / path, strict=True)
        assert await source(paths, tmp_path / path) == expected
    assert await source(paths, tmp_path / "absolute/new") == str(tmp_path / "real/new")


@pytest.mark.parametrize("path", ["dangling", "dangling/below", "loop", "file/below"])
async def test_what_cannot_be_resolved_is_refused_and_nothing_is_made(
    paths: HostPaths, tmp_path: Path, path: str
) -> None:
    (tmp_path / "dangling").symlink_to(tmp_path / "victim")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").touch()
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(InvalidRequestError, match=path):
        await source(paths, tmp_path / path)
    assert sorted(os.listdir(tmp_path)) == before


async def test_a_source_that_is_not_utf8_is_refused(paths: HostPaths, tmp_path: Path) -> None:
    os.mkdir(os.fsencode(tmp_path) + b"/\xff")
    os.symlink(b"\xff", os.fsencode(tmp_path / "link"))
    with pytest.raises(InvalidRequestError, match="UTF-8"):
        await source(paths, tmp_path / "link")


def on_network(paths: HostPaths, where: Path, **fields: Any) -> HostPaths:
    return dataclasses.replace(paths, table=lambda _: [ROOT, entry(str(where), "nfs4")], **fields)


def test_paths_on_other_file_systems_are_never_touched_here(tmp_path: Path) -> None:
    (tmp_path / "nfs").mkdir()
    (tmp_path / "link").symlink_to("nfs/deep")
    (tmp_path / "around").symlink_to("nfs/../local")
    for kind in ("nfs4", "fuse.sshfs", "cifs", "9p", "ceph", "autofs", "virtiofs", "unheard-of"):
        table = [ROOT, entry(str(tmp_path / "nfs"), kind)]
        for path in ("nfs", "nfs/x", "link", "link/x", "around"):
            assert local_path(str(tmp_path / path), table, make=True) is None
    assert local_path(str(tmp_path), [entry("/", "nfs4")]) is None
    assert os.listdir(tmp_path / "nfs") == []


def test_a_network_file_system_hides_the_local_one_below_it(tmp_path: Path) -> None:
    table = [ROOT, entry(str(tmp_path / "a/b")), entry(str(tmp_path / "a"), "nfs4")]
    assert local_path(str(tmp_path / "a/b"), table, make=True) is None


async def test_a_child_looks_at_other_file_systems(paths: HostPaths, tmp_path: Path) -> None:
    remote = on_network(paths, tmp_path)
    (tmp_path / "link").symlink_to("a")
    assert await source(remote, tmp_path / "a/new") == str(tmp_path / "a/new")
    assert (tmp_path / "a/new").is_dir()
    assert await source(remote, tmp_path / "link/new") == str(tmp_path / "a/new")
    (tmp_path / "dangling").symlink_to("victim")
    with pytest.raises(InvalidRequestError, match="dangling"):
        await source(remote, tmp_path / "dangling")
    assert not (tmp_path / "victim").exists()


async def test_a_file_system_that_hangs_costs_the_limit_only(
    paths: HostPaths, tmp_path: Path
) -> None:
    hangs = (sys.executable, "-I", "-S", "-c", "import signal; signal.pause()")
    remote = on_network(paths, tmp_path, program=hangs, limit_s=0.2)
    with pytest.raises(TimedOutError, match="hangs"):
        await source(remote, tmp_path / "a")
    assert await source(remote, "/") == "/"
    (child,) = remote._hung.values()
    assert await child.wait() < 0


async def test_a_caller_that_leaves_ends_the_look(paths: HostPaths, tmp_path: Path) -> None:
    started = tmp_path / "started"
    os.mkfifo(started)
    hangs = (sys.executable, "-I", "-S", "-c",
             f"import signal; open({str(started)!r}, 'w'); signal.pause()")  # fmt: skip
    remote = on_network(paths, tmp_path / "nfs", program=hangs)
    task = asyncio.create_task(source(remote, tmp_path / "nfs/a"))
    await asyncio.to_thread(started.read_bytes)  # until the child has opened and closed it
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    (child,) = remote._hung.values()
    assert await child.wait() < 0


async def test_a_child_that_dies_is_no_answer(paths: HostPaths, tmp_path: Path) -> None:
    remote = on_network(paths, tmp_path, program=("/bin/false",))
    with pytest.raises(InvalidRequestError, match="died"):
        await source(remote, tmp_path / "a")


@pytest.mark.parametrize(
    ("tags", "propagation", "expected"),
    [
        ((), PRIVATE, "rprivate"),
        (("shared:5",), PRIVATE, "rprivate"),
        (("shared:5",), SLAVE, "rslave"),
        (("master:5",), SLAVE, "rslave"),
        (("shared:5",), SHARED, "rshared"),
        (("shared:5", "master:4"), SHARED, "rshared"),
        ((), SLAVE, None),
        ((), SHARED, None),
        (("master:5",), SHARED, None),
        (("unbindable",), SLAVE, None),
    ],
)
async def test_propagation_needs_a_mount_that_can_give_it(
    paths: HostPaths,
    tmp_path: Path,
    tags: Sequence[str],
    propagation: MountPropagation,
    expected: str | None,
) -> None:
    table = [ROOT, entry(str(tmp_path), "ext4", *tags)]
    looked = dataclasses.replace(paths, table=lambda _: table)
    wanted = [request(tmp_path / "a/b", propagation=propagation)]
    if expected is None:
        with pytest.raises(
            InvalidRequestError, match=f'mounted on "{tmp_path}" but it is not a shared'
        ):
            await looked.resolve(wanted)
    else:
        (found,) = await looked.resolve(wanted)
        assert found.propagation == expected


@pytest.mark.parametrize(
    ("own", "expected"),
    [("inside/deep", "rslave"), ("inside", "rslave"), ("", "rprivate"), ("insides", "rprivate")],
)
async def test_a_private_copy_of_our_own_mounts_becomes_a_slave(
    paths: HostPaths, tmp_path: Path, own: str, expected: str
) -> None:
    looked = dataclasses.replace(paths, own=(tmp_path / own,))
    (found,) = await looked.resolve([request(tmp_path / "inside")])
    assert found.propagation == expected


@pytest.mark.parametrize(
    "mount",
    [
        request("relative"),
        request(""),
        request("/a\0b"),
    ],
)
async def test_mounts_that_contradict_themselves_are_refused(
    paths: HostPaths, mount: Mount
) -> None:
    with pytest.raises(InvalidRequestError, match="mount /x"):
        await paths.resolve([mount])


async def test_the_agents_own_mounts_are_read_only_for_a_path_that_leads_there(
    paths: HostPaths, tmp_path: Path
) -> None:
    own, other = tmp_path / "own", tmp_path / "other"
    for directory in (own / "pod/shm", other):
        directory.mkdir(parents=True)
    (other / "link").symlink_to(own / "pod/shm")
    whole = [ROOT, entry(str(own / "pod/shm"), "tmpfs", "master:2")]
    read: list[tuple[Path, ...]] = []

    def table(without: Sequence[Path]) -> Sequence[MountEntry]:
        read.append(tuple(without))
        return [ROOT] if without else whole

    looked = dataclasses.replace(paths, own=(own,), table=table)
    assert await source(looked, other) == str(other)
    assert read == [(own,)]
    for path in (own / "pod/shm", other / "link"):
        assert await source(looked, path, propagation=SLAVE) == str(own / "pod/shm")
        with pytest.raises(InvalidRequestError, match="not a shared mount"):
            await source(looked, path, propagation=SHARED)


async def test_the_real_mount_table_serves_too(tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        real = HostPaths(fs=pool, own=(), table=mountinfo)
        assert await source(real, tmp_path / "a") == os.path.realpath(tmp_path / "a")
