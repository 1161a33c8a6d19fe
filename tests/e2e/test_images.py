# SPDX-License-Identifier: Apache-2.0
"""Images in a real node: what containers see of them, archives, checks, and what is freed when."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import os
import signal
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from criagent.image.snapshots.driver import LayerPlace
from criagent.image.unpack.workers import LayerFile, UnpackWorkers
from tests.support import agent, image_builder
from tests.support.chosen_driver import layers_are_trees
from tests.support.cri_client import BUSYBOX, DEBIAN, Cri, api
from tests.support.image_archives import archive, command, packed, small_layer, succeed
from tests.support.images import listed, usage
from tests.support.pods import Pods
from tests.support.waiting import content

pytestmark = pytest.mark.root

ROOT = Path("/var/lib/criagent")
OTHER = Path("/mnt/images")
MADE = "registry.test/made"


@pytest.fixture
def made(cri: Cri) -> Iterator[Callable[..., bytes]]:
    """Makes archives under tags below MADE; images of those tags go away afterwards."""
    yield archive
    for tag in listed(cri):
        if tag.startswith(MADE):
            cri.remove_image(tag)


@pytest.fixture
def other_root(cri: Cri) -> Iterator[Cri]:
    """An agent with a root directory of its own, so that shared images may go."""
    agent.stop()
    OTHER.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "other", OTHER], check=True)
    client = agent.start(f'[storage]\nroot = "{OTHER}"\ndriver = "overlay"\n')
    yield client
    for sandbox in client.pods():
        client.stop_pod(sandbox.id)
        client.remove_pod(sandbox.id)
    client.close()
    agent.stop()
    subprocess.run(["umount", OTHER], check=True)
    OTHER.rmdir()
    agent.start().close()


def debian(pods: Pods) -> str:
    def change(config: api.ContainerConfig) -> None:
        config.image.image = DEBIAN
        config.linux.security_context.run_as_user.value = 0

    return pods.running("/usr/bin/sleep", "100000", change=change)


def output(pods: Pods, container_id: str, script: str) -> str:
    answer = pods.cri.exec(container_id, "sh", "-c", script)
    assert answer.exit_code == 0, answer.stderr
    return str(answer.stdout.decode(errors="replace")).strip()


def test_a_container_sees_the_image_as_its_layers_say(pods: Pods) -> None:
    container_id = debian(pods)
    facts = {
        "cd /srv/data; echo *": "original original-too",  # `gone` is whited out
        "cd /var/lib/app; echo *": "new",  # opaque
        "cat /var/lib/app/new": "new",
        "stat -c %h /srv/linked /srv/linked-too": "2\n2",
        "cat /srv/data/original-too": "lower content",  # a hard link across layers
        "stat -c '%u:%g %a' /opt/owned": "1234:1234 750",  # implied in the upper layer
        "cat /opt/owned/file /opt/owned/added": "owned\nbelow an implied directory",
        "cat /usr/bin/through-link": "#!/bin/sh\necho through",
        "stat -c %F /bin": "symbolic link",
        "/bin/through-link": "through",
        "stat -c %a /srv/setuid /tmp": "4755\n1777",
        "getfattr --only-values -n user.colour /srv/attributed": "blue",
        "cd /srv; getfattr -n security.capability -e hex capable": (
            "# file: capable\nsecurity.capability=0x0100000200200000" + "00" * 12
        ),
        "stat -c '%F %s' /srv/sparse": "regular file 1048576",
        "stat -c %F /srv/fifo": "fifo",
        "stat -c '%F %t:%T' /srv/null": "character special file 1:3",
        "cat /srv/nnnn*": "a long name",
        "stat -c %a /": "755",
        "pwd": "/srv",
    }
    for script, wanted in facts.items():
        assert output(pods, container_id, script) == wanted, script
    tail = "tail=$(cat /srv/sparse | sha256sum); echo ${tail%% *}"
    assert output(pods, container_id, tail) == hashlib.sha256(bytes(1048572) + b"tail").hexdigest()


def test_writes_stay_in_their_container(pods: Pods) -> None:
    first, second = debian(pods), debian(pods)
    output(pods, first, "echo changed > /srv/data/original; echo > /srv/data/more")
    assert output(pods, first, "cat /srv/data/original") == "changed"
    assert output(pods, second, "cat /srv/data/original; cd /srv/data; echo *") == (
        "lower content\noriginal original-too"
    )


def test_export_and_import_through_pipes(other_root: Cri, tmp_path: Path) -> None:
    other_root.pull(DEBIAN)
    other_root.pull(BUSYBOX)
    before = listed(other_root)
    data = succeed("export", "-", DEBIAN, BUSYBOX)
    for name in (DEBIAN, BUSYBOX):
        other_root.remove_image(name)
    assert usage(other_root) == (0, 0)
    answer = succeed("import", "-", data=data)
    assert sorted(answer.decode().split()) == sorted([DEBIAN, BUSYBOX])
    after = listed(other_root)
    for name in (DEBIAN, BUSYBOX):
        assert (after[name].id, after[name].size) == (before[name].id, before[name].size)
    pods = Pods(other_root, tmp_path, "imported")
    assert output(pods, debian(pods), "cat /srv/data/original") == "lower content"
    assert succeed("export", "-", DEBIAN, BUSYBOX) == data
    assert DEBIAN in succeed("ls").decode()
    assert "no problem found" in succeed("fsck").decode()


def test_export_by_a_short_id_keeps_the_tags(cri: Cri) -> None:
    short = listed(cri)[BUSYBOX].id.removeprefix("sha256:")[:12]
    with tarfile.open(fileobj=io.BytesIO(succeed("export", "-", short))) as tar:
        member = tar.extractfile("manifest.json")
        assert member is not None
        (entry,) = json.loads(member.read())
    assert entry["RepoTags"] == [BUSYBOX]


def test_import_and_export_of_files(cri: Cri, made: Callable[..., bytes], tmp_path: Path) -> None:
    file = tmp_path / "image.tar"
    file.write_bytes(made([small_layer(b"1")], f"{MADE}:1"))
    assert succeed("import", str(file)).decode().split() == [f"{MADE}:1"]
    succeed("export", str(tmp_path / "out.tar"), f"{MADE}:1")
    cri.remove_image(f"{MADE}:1")
    answer = json.loads(succeed("import", str(tmp_path / "out.tar"), "--output", "json"))
    assert [image["tags"] for image in answer] == [[f"{MADE}:1"]]
    assert command("export", "-", f"{MADE}:none").returncode == 1


def test_equal_layers_twice_in_an_image(cri: Cri, pods: Pods, made: Callable[..., bytes]) -> None:
    base, empty = small_layer(b"content"), image_builder.Layer().tar()
    succeed("import", "-", data=made([base, empty, base, empty], f"{MADE}:twice"))

    def change(config: api.ContainerConfig) -> None:
        config.image.image = f"{MADE}:twice"

    container_id = pods.running("/usr/bin/sleep", "1000", change=change)
    assert cri.exec(container_id, "/usr/bin/cat", "/content").stdout == b"content"


@pytest.mark.parametrize("kind", ["text", "wrong diff ID", "damaged layer", "no layer"])
def test_a_bad_archive_leaves_nothing(cri: Cri, made: Callable[..., bytes], kind: str) -> None:
    layer = small_layer(b"bad")
    data = made([layer], f"{MADE}:bad")
    if kind == "text":
        data = b"no archive"
    elif kind == "no layer":
        data = packed({"oci-layout": b"", "index.json": b'{"manifests": []}'})
    elif kind == "damaged layer":
        place = data.index(b"\x1f\x8b") + 50
        data = data[:place] + b"damage" + data[place + 6 :]
    else:
        config = {"rootfs": {"diff_ids": ["sha256:" + "0" * 64]}}
        listing = {"Config": "c", "RepoTags": [f"{MADE}:bad"], "Layers": ["l"]}
        data = packed(
            {
                "c": json.dumps(config).encode(),
                "l": layer,
                "manifest.json": json.dumps([listing]).encode(),
            }
        )
    before = set((ROOT / "snapshots").iterdir())
    done = command("import", "-", data=data)
    assert done.returncode == 1
    assert done.stderr
    assert f"{MADE}:bad" not in listed(cri)
    succeed("prune")
    assert set((ROOT / "snapshots").iterdir()) == before
    assert list((ROOT / "incoming").iterdir()) == []
    assert "no problem found" in succeed("fsck").decode()


def layer_directory(cri: Cri, content: bytes) -> Path:
    (found,) = [
        path.parent
        for path in (ROOT / "snapshots").glob("[0-9]*/fs/content")
        if path.read_bytes() == content
    ]
    return found


def test_fsck_finds_and_drops_what_is_damaged(cri: Cri, made: Callable[..., bytes]) -> None:
    data = made([small_layer(b"damage me")], f"{MADE}:1")
    succeed("import", "-", data=data)
    config = ROOT / "blobs" / listed(cri)[f"{MADE}:1"].id.replace(":", "/")
    config.chmod(0o600)
    config.write_bytes(config.read_bytes()[:-1] + b" ")
    found = command("fsck")
    assert found.returncode == 1
    assert "does not match" in found.stdout.decode()
    assert f"{MADE}:1" in listed(cri)  # a look changes nothing
    assert "(repaired)" in succeed("fsck", "--repair").decode()
    assert f"{MADE}:1" not in listed(cri)
    assert DEBIAN in listed(cri)
    assert "no problem found" in succeed("fsck").decode()
    succeed("import", "-", data=data)
    assert config.exists()
    assert "no problem found" in succeed("fsck").decode()


@layers_are_trees
@pytest.mark.parametrize("how", ["gone", "emptied"])
def test_fsck_finds_a_missing_layer(cri: Cri, made: Callable[..., bytes], how: str) -> None:
    data = made([small_layer(how.encode())], f"{MADE}:1")
    succeed("import", "-", data=data)
    directory = layer_directory(cri, how.encode())
    subprocess.run(["rm", "-r", str(directory)], check=True)
    if how == "emptied":
        directory.mkdir()
    found = json.loads(command("fsck", "--output", "json").stdout)
    assert any("directory is" in finding["problem"] for finding in found)
    assert all(
        finding["repaired"]
        for finding in json.loads(succeed("fsck", "--repair", "--output", "json"))
    )
    assert f"{MADE}:1" in listed(cri)
    assert layer_directory(cri, how.encode()) != directory
    assert "no problem found" in succeed("fsck").decode()


def test_strays_are_found_and_pruned(cri: Cri) -> None:
    content = os.urandom(5000)
    stray = ROOT / "blobs/sha256" / hashlib.sha256(content).hexdigest()
    stray.write_bytes(content)
    part = stray.with_name("0" * 64 + ".part")
    part.write_bytes(content)
    freed = len(content) + part.stat().st_blocks * 512
    assert "belongs to no image" in command("fsck").stdout.decode()
    answer = json.loads(succeed("prune", "--output", "json"))
    assert (answer["blobs"], answer["freed_bytes"]) == (1, freed)
    assert not stray.exists()
    assert not part.exists()
    assert {DEBIAN, BUSYBOX} <= listed(cri).keys()


def test_pinned_patterns(cri: Cri) -> None:
    agent.stop()
    fresh = agent.start('[registry]\npinned_images = ["registry.k8s.io/fixtures/*"]\n')
    try:
        images = listed(fresh)
        assert images[DEBIAN].pinned
        assert not images[BUSYBOX].pinned
        container_ids = json.loads(succeed("ls", "--output", "json"))
        assert {
            tuple(container_id["tags"]): container_id["pinned"] for container_id in container_ids
        }[(DEBIAN,)]
    finally:
        fresh.close()
        agent.stop()
        agent.start().close()


@layers_are_trees
def test_layers_stay_while_a_container_uses_them(
    cri: Cri, pods: Pods, made: Callable[..., bytes]
) -> None:
    succeed("import", "-", data=made([small_layer(b"in use")], f"{MADE}:used"))

    def change(config: api.ContainerConfig) -> None:
        config.image.image = f"{MADE}:used"

    container_id = pods.running("/usr/bin/sleep", "1000", change=change)
    tree = layer_directory(cri, b"in use")
    cri.remove_image(f"{MADE}:used")
    succeed("prune")
    assert f"{MADE}:used" not in listed(cri)
    assert cri.exec(container_id, "/usr/bin/cat", "/content").stdout == b"in use"
    assert tree.is_dir()
    cri.stop(container_id)
    cri.remove(container_id)
    succeed("prune")
    assert not tree.exists()


def test_nothing_is_used_without_images(other_root: Cri) -> None:
    assert usage(other_root) == (0, 0)
    other_root.pull(DEBIAN)
    other_root.pull(BUSYBOX)
    used, inodes = usage(other_root)
    assert used > 1 << 20
    assert inodes > 100
    for image in other_root.images():
        other_root.remove_image(image.id)
    assert usage(other_root) == (0, 0)
    succeed("prune")
    assert [p for p in (OTHER / "snapshots").iterdir() if p.name.isdigit()] == []
    assert [p for p in (OTHER / "blobs").rglob("*") if p.is_file()] == []
    with pytest.raises(grpc.RpcError) as caught:
        other_root.pull("registry.k8s.io/fixtures/none:1")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert usage(other_root) == (0, 0)


async def test_an_idle_worker_that_was_killed_is_replaced(tmp_path: Path) -> None:
    """As the kernel does it when memory runs out."""
    content = small_layer(b"x")
    (tmp_path / "blob").write_bytes(content)
    digest = image_builder.digest(content)
    layer = LayerFile(blob=tmp_path / "blob", digest=digest, diff_id=digest)
    workers = UnpackWorkers(1)
    try:
        for number in range(2):
            root = tmp_path / str(number)
            root.mkdir()
            place = LayerPlace(root=root, scratch=tmp_path)
            await workers.extract(layer, place, lambda _: None)
            assert (root / "content").read_bytes() == b"x"
            (worker,) = children()
            await killed(worker)
    finally:
        await workers.close()


def children() -> list[int]:
    return [
        int(path.parent.name)
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if b"unpack.worker" in content(path)
        and f"\nPPid:\t{os.getpid()}\n".encode() in content(path.parent / "status")
    ]


async def killed(pid: int) -> None:
    """Kill it, and let the loop hear of it."""
    process, ended = os.pidfd_open(pid), asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(process, ended.set)
    os.kill(pid, signal.SIGKILL)
    async with asyncio.timeout(10):
        await ended.wait()
    loop.remove_reader(process)
    os.close(process)
