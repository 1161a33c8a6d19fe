# SPDX-License-Identifier: Apache-2.0
"""Mounts of host paths: recursive read-only, propagation, options, and sources of every kind."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from tests.support import agent
from tests.support.cri_client import Cri, api, container
from tests.support.mounts import bind, wants
from tests.support.pods import Pods
from tests.support.refusals import refused

pytestmark = pytest.mark.root

INVALID = grpc.StatusCode.INVALID_ARGUMENT
UNSUPPORTED = grpc.StatusCode.UNIMPLEMENTED
PRIVATE, SLAVE, SHARED = (
    api.PROPAGATION_PRIVATE,
    api.PROPAGATION_HOST_TO_CONTAINER,
    api.PROPAGATION_BIDIRECTIONAL,
)

# What `features` of an OCI runtime says that knows nothing but how to run containers.
_BARE = """#!/bin/sh
[ "$1" = features ] && { echo '{}'; exit; }
exec /usr/bin/crun "$@"
"""


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Path]:
    """A mount with a mount in it, both private."""
    top = tmp_path / "tree"
    top.mkdir()
    mount("-t", "tmpfs", "tmpfs", top)
    mount("--make-private", top)
    (top / "sub").mkdir()
    mount("-t", "tmpfs", "tmpfs", top / "sub")
    yield top
    subprocess.run(["umount", "-R", top], check=True)


def mount(*words: str | Path) -> None:
    subprocess.run(["mount", *words], check=True)


def succeeds(pods: Pods, container_id: str, *words: str) -> bool:
    return bool(pods.cri.exec(container_id, *words).exit_code == 0)


def options(pods: Pods, container_id: str, target: str) -> list[str]:
    table = pods.cri.exec(container_id, "cat", "/proc/self/mountinfo").stdout.decode().splitlines()
    (found,) = [line.split()[5].split(",") for line in table if line.split()[4] == target]
    return found


@pytest.mark.parametrize("handler", ["crun", "runc"])
def test_read_only_is_for_the_mount_and_recursive_for_all_below(
    pods: Pods, tree: Path, handler: str
) -> None:
    config = pods.config()
    sandbox = pods.cri.run(config, handler=handler), config
    flat = bind(tree, "/flat", readonly=True)
    deep = bind(tree, "/deep", readonly=True, recursive_read_only=True)
    container_id = pods.running(pod=sandbox, change=wants(flat, deep))
    assert not succeeds(pods, container_id, "touch", "/flat/x")
    assert succeeds(pods, container_id, "touch", "/flat/sub/x")
    assert not succeeds(pods, container_id, "touch", "/deep/x")
    assert not succeeds(pods, container_id, "touch", "/deep/sub/y")
    (tree / "sub/y").touch()  # the host's own mount is as it was
    assert succeeds(pods, container_id, "ls", "/deep/sub/y")
    told = {m.container_path: m.recursive_read_only for m in pods.cri.status(container_id).mounts}
    assert told == {"/flat": False, "/deep": True}


def test_handlers_tell_whether_they_can_do_it(cri: Cri) -> None:
    found = cri.runtime.Status(api.StatusRequest()).runtime_handlers
    assert {h.name: h.features.recursive_read_only_mounts for h in found} == {
        "": True,
        "crun": True,
        "runc": True,
    }


def test_a_handler_without_recursive_read_only_refuses_it(pods: Pods, tmp_path: Path) -> None:
    program = tmp_path / "bare"
    program.write_text(_BARE)
    program.chmod(0o755)
    paths = {"crun": Path("/usr/bin/crun"), "bare": program}
    agent.stop()
    pods.cri = agent.start(
        "".join(
            f'[runtime.handlers.{name}]\npath = "{path}"\ntype = "crun"\n'
            for name, path in paths.items()
        )
    )
    try:
        found = pods.cri.runtime.Status(api.StatusRequest()).runtime_handlers
        assert [h.features.recursive_read_only_mounts for h in found if h.name == "bare"] == [False]
        config = pods.config()
        sandbox = pods.cri.run(config, handler="bare")
        wanted = container("c", ["sleep", "100"])
        wanted.mounts.append(bind("/srv", readonly=True, recursive_read_only=True))
        refused(lambda: pods.cri.create(sandbox, wanted, config), UNSUPPORTED, 'handler "bare"')
        with pytest.raises(grpc.RpcError, match="RROUnsupported: "):
            pods.cri.create(sandbox, wanted, config)
        wanted.mounts[0].recursive_read_only = False
        pods.cri.start(pods.cri.create(sandbox, wanted, config))
        pods.cri.remove_pod(sandbox)
    finally:
        agent.stop()
        shutil.rmtree("/run/criagent/runtime/bare")
        agent.start().close()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"recursive_read_only": True}, "requires readonly"),
        ({"recursive_read_only": True, "readonly": True, "propagation": SLAVE}, "private"),
        ({"recursive_read_only": True, "readonly": True, "propagation": SHARED}, "private"),
        ({"mount_options": ["noexec", "suid"]}, "suid"),
        ({"propagation": 7}, "7"),
    ],
)
def test_mounts_that_contradict_themselves_are_refused(
    pods: Pods, fields: dict[str, object], words: str
) -> None:
    sandbox, config = pods.sandbox()
    wanted = container("bad", ["sleep", "1"])
    wanted.mounts.append(bind("/srv", **fields))  # type: ignore[arg-type]
    refused(lambda: pods.cri.create(sandbox, wanted, config), INVALID, words)


@pytest.mark.parametrize(
    ("source", "propagation", "words"),
    [
        ("private", SLAVE, "is not a shared or slave mount"),
        ("private", SHARED, "is not a shared mount"),
        ("slave", SHARED, "is not a shared mount"),
        ("private", PRIVATE, ""),
        ("slave", SLAVE, ""),
        ("shared", SLAVE, ""),
        ("shared", SHARED, ""),
    ],
)
def test_propagation_needs_a_source_that_propagates(
    pods: Pods,
    tree: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    source: str,
    propagation: int,
    words: str,
) -> None:
    mount("--make-shared", tree)
    (tmp_path / "master").mkdir()
    mount("--bind", tree, tmp_path / "master")
    request.addfinalizer(lambda: subprocess.run(["umount", tmp_path / "master"], check=True))
    if source != "shared":
        mount(f"--make-{source}", tree)
    (tree / "inner").mkdir()
    wish = wants(bind(tree / "inner", propagation=propagation))
    if words:
        sandbox, config = pods.sandbox()
        wanted = container("bad", ["sleep", "1"])
        wish(wanted)
        told = f'path "{tree}/inner" is mounted on "{tree}" but it {words}'
        refused(lambda: pods.cri.create(sandbox, wanted, config), INVALID, told)
        assert pods.cri.containers() == []
    else:
        container_id = pods.running(change=wish)
        assert pods.cri.status(container_id).mounts[0].propagation == propagation


@pytest.mark.parametrize("handler", ["crun", "runc"])
def test_options_are_the_mounts(pods: Pods, tmp_path: Path, handler: str) -> None:
    (tmp_path / "program").write_text("#!/bin/sh\necho ran\n")
    (tmp_path / "program").chmod(0o755)
    config = pods.config()
    sandbox = pods.cri.run(config, handler=handler), config
    strict = bind(tmp_path, "/strict", mount_options=["noexec", "nodev", "nosuid"])
    container_id = pods.running(pod=sandbox, change=wants(bind(tmp_path, "/free"), strict))
    assert pods.cri.exec(container_id, "/free/program").stdout == b"ran\n"
    assert pods.cri.exec(container_id, "/strict/program").exit_code != 0
    assert {"noexec", "nodev", "nosuid", "rw"} <= set(options(pods, container_id, "/strict"))
    assert not {"noexec", "nodev", "nosuid"} & set(options(pods, container_id, "/free"))
    told = {m.container_path: list(m.mount_options) for m in pods.cri.status(container_id).mounts}
    assert told == {"/free": [], "/strict": ["noexec", "nodev", "nosuid"]}
    assert pods.cri.runtime.Status(api.StatusRequest()).features.mount_options


def test_sources_of_every_kind_are_mounted(pods: Pods, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("content")
    os.mkfifo(tmp_path / "fifo")
    os.mknod(tmp_path / "device", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    (tmp_path / "a b\n\\c ü").mkdir()
    (tmp_path / "a b\n\\c ü/deep").write_text("odd")
    (tmp_path / "dir").mkdir()
    (tmp_path / "to-file").symlink_to("file")
    (tmp_path / "to-link").symlink_to(tmp_path / "to-file")
    (tmp_path / "dir/up").symlink_to("../dir/..")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        container_id = pods.running(
            change=wants(
                bind(tmp_path / "file", "/m/file", readonly=True),
                bind(tmp_path / "fifo", "/m/fifo"),
                bind(tmp_path / "device", "/m/device"),
                bind(tmp_path / "socket", "/m/socket"),
                bind(tmp_path / "to-link", "/m/linked"),
                bind(tmp_path / "a b\n\\c ü", "/m/odd"),
                bind(f"{tmp_path}/dir/up/../{tmp_path.name}/", "/m/up"),
            )
        )
    script = """
    cat /m/file /m/linked /m/odd/deep /m/up/file
    test -p /m/fifo && test -c /m/device && test -S /m/socket && echo kinds
    echo x > /m/file || true
    """
    done = pods.cri.exec(container_id, "sh", "-c", script)
    assert done.stdout == b"contentcontentoddcontentkinds\n"
    assert b"Read-only" in done.stderr
    assert (tmp_path / "file").read_text() == "content"


def test_mounts_below_a_source_come_along_and_stay_apart(pods: Pods, tree: Path) -> None:
    (tree / "sub/below").write_text("seen")
    (tree / "late").mkdir()
    container_id = pods.running(change=wants(bind(tree)))
    assert pods.cri.exec(container_id, "cat", "/x/sub/below").stdout == b"seen"
    mount("-t", "tmpfs", "tmpfs", tree / "late")
    (tree / "late/file").touch()
    assert pods.cri.exec(container_id, "ls", "/x/late").stdout == b""


def test_a_missing_source_is_a_directory_of_root(pods: Pods, tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    pods.running(change=wants(bind(tmp_path / "new/deep")))
    for made in (tmp_path / "new", tmp_path / "new/deep"):
        assert made.is_dir()
        facts = made.stat()
        assert (stat.S_IMODE(facts.st_mode), facts.st_uid, facts.st_gid) == (0o755, 0, 0)


@pytest.mark.parametrize("path", ["dangling", "dangling/below", "loop", "file/below"])
def test_a_source_that_leads_nowhere_is_refused_and_not_made(
    pods: Pods, tmp_path: Path, path: str
) -> None:
    (tmp_path / "dangling").symlink_to(tmp_path / "victim")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").touch()
    before = sorted(os.listdir(tmp_path))
    sandbox, config = pods.sandbox()
    wanted = container("bad", ["sleep", "1"])
    wanted.mounts.append(bind(tmp_path / path))
    refused(lambda: pods.cri.create(sandbox, wanted, config), INVALID, path)
    assert sorted(os.listdir(tmp_path)) == before
