# SPDX-License-Identifier: Apache-2.0
"""Archives of checkpoints, hostile ones too: nothing is written beside the directory that they are
unpacked to, and only the documented errors come. The digest of the manifest is that of the archive,
as if the node had signed it; a wrong one refuses every archive.
"""

from __future__ import annotations

import atexit
import hashlib
import io
import json
import os
import shutil
import stat
import tarfile
import tempfile
from pathlib import Path
from random import Random

from criagent.base.errors import AgentError, CorruptError
from criagent.model.container import Container, ContainerId, ContainerMetadata, ContainerSpec
from criagent.model.sandbox import Sandbox, SandboxId, SandboxMetadata, SandboxSpec
from criagent.runtime.checkpoint.manifest import Archived, Manifest
from criagent.runtime.restore import archive, files, images
from criagent.runtime.restore.source import Source
from tests.fuzz.frame import mutate_bytes, mutate_json
from tests.fuzz.tars import TARGETS, sealed

TOP = Path(tempfile.mkdtemp(prefix="criagent-fuzz-"))
atexit.register(shutil.rmtree, TOP, ignore_errors=True)
CONTAINER = Container(
    id=ContainerId("c" * 64),
    sandbox_id=SandboxId("s" * 64),
    spec=ContainerSpec(metadata=ContainerMetadata(name="c"), image="i"),
    created_at_ns=1,
    boot_id="b",
    handler="runc",
)
SANDBOX = Sandbox(
    id=SandboxId("s" * 64),
    spec=SandboxSpec(metadata=SandboxMetadata(name="p", uid="u", namespace="n")),
    created_at_ns=1,
    boot_id="b",
)
NAME = f"{CONTAINER.id}.tar"
MAGIC = bytes(8)
UTSNS = MAGIC + b"\x10\0\0\0" + b"\x0a\x06before\x12\x06(none)"
CGROUP = MAGIC + b"\x20\0\0\0" + (
    b"\x0a\x0c\x08\x01\x12\x08\x0a\x00\x12\x02/a\x18\x02" + b"\x0a\x06\x08\x02\x12\x02\x0a\x00"
    + b"\x12\x08\x0a\x03cpu\x12\x01a"
)  # fmt: skip
DELETED = json.dumps(["/kept", "/a/b", "/l/kept", "/../kept", "//", "/a/../../kept"]).encode()
SPEC = json.dumps(
    {"mounts": [{"destination": "/x", "type": "bind"}, {"destination": "/"}]}
).encode()
NAMES = ["checkpoint/inventory.img", "checkpoint/utsns-1.img", "checkpoint/cgroup.img",
         "rootfs-diff.tar", "deleted.files", "spec.dump", "config.dump", "container.log",
         "checkpoint", "checkpoint/../outside/kept", "../outside/kept", "/outside/kept",
         "checkpoint/.", "checkpoint/..", "checkpoint//a", "checkpoint/a\n"]  # fmt: skip
KINDS = [*[tarfile.REGTYPE] * 12, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE,
         tarfile.FIFOTYPE, tarfile.CHRTYPE, b"S", b"x", b"g"]  # fmt: skip


def content(rnd: Random, name: str) -> bytes:
    match name:
        case "checkpoint/utsns-1.img":
            return mutate_bytes(rnd, UTSNS, []) if rnd.random() < 0.5 else UTSNS
        case "checkpoint/cgroup.img":
            return mutate_bytes(rnd, CGROUP, [b"\xff" * 9]) if rnd.random() < 0.5 else CGROUP
        case "deleted.files":
            return mutate_json(rnd, DELETED, TARGETS) if rnd.random() < 0.5 else DELETED
        case "spec.dump":
            return mutate_json(rnd, SPEC, ["mounts", "destination"]) if rnd.random() < 0.5 else SPEC
    return rnd.randbytes(rnd.choice([0, 5, 600]))


def make(rnd: Random, seeds: list[bytes]) -> bytes:
    """Mostly an archive that would be accepted but for one or two things."""
    if seeds and rnd.random() < 0.1:
        return rnd.choice(seeds)
    names = NAMES[:6] + rnd.choices(NAMES, k=rnd.choice([0, 0, 1, 3]))
    rnd.shuffle(names)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name in names:
            entry = tarfile.TarInfo(name)
            entry.type = rnd.choice(KINDS) if rnd.random() < 0.1 else tarfile.REGTYPE
            if entry.type in {tarfile.SYMTYPE, tarfile.LNKTYPE}:
                entry.linkname = rnd.choice([*TARGETS, str(TOP / "outside/kept")])
            data = content(rnd, name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    data = out.getvalue()
    return sealed(mutate_bytes(rnd, data, [])) if rnd.random() < 0.3 else data


def source(data: bytes, digest: str) -> tuple[Source, Archived]:
    archived = Archived(container=CONTAINER, archive=NAME, sha256=digest, size=len(data))
    manifest = Manifest(
        version=1,
        made_at_ns=1,
        agent="x",
        handler="runc",
        sandbox=SANDBOX,
        containers=(archived,),
    )
    return Source(TOP / "input", manifest), archived


def check(data: bytes) -> None:
    for name in ("input", "target", "root", "outside"):
        shutil.rmtree(TOP / name, ignore_errors=True)
        (TOP / name).mkdir()
    (TOP / "outside/kept").write_text("of the node")
    (TOP / "root/a").mkdir()
    (TOP / "root/l").symlink_to(TOP / "outside")
    (TOP / "input" / NAME).write_bytes(data)
    try:
        archive.unpack(*source(data, "0" * 64), TOP / "target", lambda: None)
    except CorruptError:
        shutil.rmtree(TOP / "target")
        (TOP / "target").mkdir()
    else:
        raise AssertionError("an archive with another digest was accepted")
    try:
        digest = hashlib.sha256(data).hexdigest()
        found = archive.unpack(*source(data, digest), TOP / "target", lambda: None)
        files.delete(TOP / "root", found.deleted)
        _images()
    except AgentError as exc:
        assert len(str(exc)) < 4000
    _nothing_beside()


def _images() -> None:
    target = TOP / "target" / "checkpoint"
    images.keep_cgroup_v2(target)
    kept = [path.read_bytes() for path in target.glob("cgroup.img")]
    images.keep_cgroup_v2(target)
    assert [path.read_bytes() for path in target.glob("cgroup.img")] == kept
    images.set_hostname(target, "restored")


def _nothing_beside() -> None:
    assert {path.name for path in TOP.iterdir()} == {"input", "target", "root", "outside"}
    assert [path.name for path in (TOP / "outside").iterdir()] == ["kept"]
    assert (TOP / "outside/kept").read_text() == "of the node"
    assert {path.name for path in (TOP / "target").iterdir()} <= {"checkpoint", archive.DIFF}
    for base, directories, names in os.walk(TOP / "target"):
        assert not directories or Path(base) == TOP / "target"
        for name in names:
            assert stat.S_ISREG(Path(base, name).lstat().st_mode)
