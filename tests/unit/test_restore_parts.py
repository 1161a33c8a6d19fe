# SPDX-License-Identifier: Apache-2.0
"""Parts of RestorePod that need no node: CRIU's images and options, archives, changed files."""

from __future__ import annotations

import hashlib
import io
import os
import struct
import tarfile
from pathlib import Path

import pytest

from criagent.base.errors import CorruptError
from criagent.model.container import Container, ContainerId, ContainerMetadata, ContainerSpec
from criagent.model.sandbox import Sandbox, SandboxId, SandboxMetadata, SandboxSpec
from criagent.runtime.checkpoint.manifest import Archived, Manifest
from criagent.runtime.restore import archive, files, images
from criagent.runtime.restore.source import Source

_ID = ContainerId("c" * 64)
_MAGIC = bytes.fromhex("1943565403324754")


def utsns(nodename: bytes, domain: bytes) -> bytes:
    message = b"\x0a%c%b\x12%c%b" % (len(nodename), nodename, len(domain), domain)
    return _MAGIC + struct.pack("<I", len(message)) + message


def test_the_hostname_in_an_image_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "utsns-11.img"
    path.write_bytes(utsns(b"before", b"(none)"))
    images.set_hostname(tmp_path, "a-longer-name")
    assert path.read_bytes() == utsns(b"a-longer-name", b"(none)")


@pytest.mark.parametrize(
    "tail", [b"\x0a", b"\x0a\x7fx", b"\x0d\x01", b"\x0a\x02x", b"\x0a\xff", b"\x0a\x41" + b"a" * 65]
)
def test_a_malformed_image_is_refused(tmp_path: Path, tail: bytes) -> None:
    (tmp_path / "utsns-1.img").write_bytes(_MAGIC + struct.pack("<I", len(tail)) + tail)
    with pytest.raises(CorruptError):
        images.set_hostname(tmp_path, "x")


def message(*fields: tuple[int, bytes]) -> bytes:
    """Texts and messages of up to 16383 bytes."""
    encoded = b""
    for number, content in fields:
        size = len(content)
        length = bytes((size,)) if size < 128 else bytes((size & 0x7F | 0x80, size >> 7))
        encoded += bytes((number << 3 | 2,)) + length + content
    return encoded


def cgroups(*names: bytes) -> bytes:
    """cgroup.img of two processes in the hierarchies of these controllers."""
    path = b"/cri/" + b"c" * 64
    members = [message((1, name), (2, path)) + b"\x18\x45" for name in names]
    sets = [b"\x08" + bytes((one,)) + message(*((2, m) for m in members)) for one in (1, 2)]
    controllers = [message((1, name), (2, message((1, path[1:])))) for name in names]
    whole = message(*((1, one) for one in sets), *((2, one) for one in controllers))
    return _MAGIC + struct.pack("<I", len(whole)) + whole


def test_cgroups_v1_are_not_restored(tmp_path: Path) -> None:
    path = tmp_path / "cgroup.img"
    path.write_bytes(cgroups(b"cpu", b"", b"name=systemd"))
    images.keep_cgroup_v2(tmp_path)
    assert path.read_bytes() == cgroups(b"")
    images.keep_cgroup_v2(tmp_path)
    assert path.read_bytes() == cgroups(b"")


def test_a_malformed_image_of_cgroups_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cgroup.img"
    for tail in (b"\x0a\x05\x12\x7f", b"\x13", b"\x0a" + b"\xff" * 20):
        path.write_bytes(_MAGIC + struct.pack("<I", len(tail)) + tail)
        with pytest.raises(CorruptError):
            images.keep_cgroup_v2(tmp_path)


def test_objects_of_ipc_go_and_their_limits_stay(tmp_path: Path) -> None:
    names = ("ipcns-shm-10.img", "ipcns-msg-10.img", "ipcns-sem-10.img", "ipcns-var-10.img")
    for name in (*names, "core-1.img"):
        (tmp_path / name).touch()
    images.drop_ipc_objects(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"ipcns-var-10.img", "core-1.img"}


def test_the_options_of_criu(tmp_path: Path) -> None:
    """A pod on the node's network has no UTS namespace of its own."""
    images.write_options(tmp_path / "home", "/cri/id", {"ipc": Path("/run/ns/ipc")})
    assert (tmp_path / "home/.criu/default.conf").read_text().splitlines() == [
        "tcp-close",
        "network-lock skip",
        "cgroup-root :/cri/id",
        "join-ns ipc:/run/ns/ipc",
    ]
    images.write_options(tmp_path / "other", "", {})
    written = (tmp_path / "other/.criu/default.conf").read_text().splitlines()
    assert written == ["tcp-close", "network-lock skip"]


def packed(path: Path, *members: tuple[str, bytes, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, kind, content in members:
            entry = tarfile.TarInfo(name)
            entry.type, entry.size = kind, len(content)
            if kind == tarfile.SYMTYPE:
                entry.linkname, entry.size = content.decode(), 0
            tar.addfile(entry, io.BytesIO(content))


def signed(directory: Path) -> tuple[Source, Archived]:
    """The archive in `directory` with a manifest that names it as it is."""
    path = directory / f"{_ID}.tar"
    container = Container(
        id=_ID,
        sandbox_id=SandboxId("s" * 64),
        spec=ContainerSpec(metadata=ContainerMetadata(name="c"), image="i"),
        created_at_ns=1,
        boot_id="b",
        handler="runc",
    )
    sandbox = Sandbox(
        id=SandboxId("s" * 64),
        spec=SandboxSpec(metadata=SandboxMetadata(name="p", uid="u", namespace="n")),
        created_at_ns=1,
        boot_id="b",
    )
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    archived = Archived(
        container=container, archive=path.name, sha256=digest, size=path.stat().st_size
    )
    manifest = Manifest(
        version=1,
        made_at_ns=1,
        agent="x",
        handler="runc",
        sandbox=sandbox,
        containers=(archived,),
    )
    return Source(directory, manifest), archived


GOOD = (
    ("checkpoint/inventory.img", tarfile.REGTYPE, b"images"),
    ("rootfs-diff.tar", tarfile.REGTYPE, b"diff"),
    ("deleted.files", tarfile.REGTYPE, b'["/a"]'),
    ("spec.dump", tarfile.REGTYPE, b'{"mounts": [{"destination": "/x", "type": "bind"}]}'),
    ("container.log", tarfile.REGTYPE, b"old lines"),
    ("../../outside", tarfile.REGTYPE, b"x"),
    ("checkpoint/../x", tarfile.REGTYPE, b"x"),
)


def test_an_archive_is_unpacked_by_exact_names(tmp_path: Path) -> None:
    packed(tmp_path / f"{_ID}.tar", *GOOD)
    source, archived = signed(tmp_path)
    target = tmp_path / "target"
    found = archive.unpack(source, archived, target, lambda: None)
    assert found == archive.Documents(("/a",), frozenset({"/x"}))
    written = {str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()}
    assert written == {"checkpoint/inventory.img", "rootfs-diff.tar"}


@pytest.mark.parametrize(
    "members",
    [
        (),
        GOOD[:1],
        GOOD[1:],
        (*GOOD, GOOD[0]),
        (*GOOD, GOOD[1]),
        (*GOOD, GOOD[3]),
        (("checkpoint/link", tarfile.SYMTYPE, b"/etc/passwd"), *GOOD),
        (("spec.dump", tarfile.SYMTYPE, b"/etc/passwd"), *GOOD[:2]),
        (*GOOD[:2], ("spec.dump", tarfile.REGTYPE, b"[]")),
        (*GOOD[:2], GOOD[3], ("deleted.files", tarfile.REGTYPE, b"[1]")),
    ],
)
def test_a_signed_archive_is_parsed_as_hostile_all_the_same(
    tmp_path: Path, members: tuple[tuple[str, bytes, bytes], ...]
) -> None:
    packed(tmp_path / f"{_ID}.tar", *members)
    source, archived = signed(tmp_path)
    with pytest.raises(CorruptError):
        archive.unpack(source, archived, tmp_path / "target", lambda: None)


def test_deleting_stays_below_the_root(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    for path in (root / "d/e", outside):
        path.mkdir(parents=True)
    (outside / "file").touch()
    (root / "link").symlink_to(outside)
    os.symlink("../outside", root / "d/up")
    files.delete(root, ["/link/file", "/d/up/file", "/../outside/file", "/none/x", "/d/e", "/", ""])
    assert (outside / "file").exists()
    assert sorted(path.name for path in root.rglob("*")) == ["d", "link", "up"]
