# SPDX-License-Identifier: Apache-2.0
"""Parts of checkpoints: the file's place, the record of a pod's, CRIU's errors, the signature."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
from pathlib import Path

import pytest

from criagent.base.errors import AlreadyExistsError, InvalidRequestError
from criagent.model.sandbox import Sandbox, SandboxId, SandboxMetadata, SandboxSpec
from criagent.runtime.checkpoint import manifest
from criagent.runtime.checkpoint.criu import last_errors
from criagent.runtime.checkpoint.location import check_location, new_file
from criagent.runtime.checkpoint.record import Record, check_output, read_record
from criagent.runtime.node.criu import restore_problem, too_old
from criagent.runtime.node.paths import RuntimePaths
from criagent.store.db import Database
from criagent.store.settings import SettingStore


@pytest.fixture
def paths(tmp_path: Path) -> RuntimePaths:
    paths = RuntimePaths(root=tmp_path / "root", run_dir=tmp_path / "run")
    paths.prepare()
    return paths


def test_a_file_has_a_name_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    with new_file(path) as file:
        os.write(file.fd, b"content")
        assert list(tmp_path.iterdir()) == []
        file.publish()
    assert path.read_bytes() == b"content"
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(AlreadyExistsError), new_file(path):
        pass


def test_a_name_that_is_taken_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    with new_file(path) as file:
        path.write_text("other")
        with pytest.raises(AlreadyExistsError):
            file.publish()
    assert path.read_text() == "other"


def test_a_place_behind_a_symlink_is_judged_by_where_it_is(
    tmp_path: Path, paths: RuntimePaths
) -> None:
    (tmp_path / "link").symlink_to(paths.root)
    with pytest.raises(InvalidRequestError, match="directory of the agent"):
        check_location(str(tmp_path / "link/x.tar"), paths)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(InvalidRequestError, match="create it first"):
        check_location(str(tmp_path / "loop/x.tar"), paths)
    for text in ("", "x", "/", "/a/", "/a/../b", "/a\0b"):
        with pytest.raises(InvalidRequestError):
            check_location(text, paths)


def test_what_a_record_takes_away(tmp_path: Path, paths: RuntimePaths) -> None:
    output = tmp_path / "output"
    output.mkdir(mode=0o700)
    assert check_output(str(output), paths) == output
    directory = paths.checkpoint("s" * 64)
    directory.mkdir()
    Record(str(output), ("c" * 64,)).write(directory)
    (output / ".work" / ("c" * 64)).mkdir(parents=True)
    for name in (f"{'c' * 64}.tar", "pod.json", "devshm-checkpoint.tar", "of-the-caller"):
        (output / name).touch()
    found = read_record(directory)
    assert found is not None
    found.remove_files()
    found.remove_files()
    assert [path.name for path in output.iterdir()] == ["of-the-caller"]
    with pytest.raises(InvalidRequestError, match="not empty"):
        check_output(str(output), paths)


@pytest.mark.parametrize("content", [b"", b'{"output":', b"[]"])
def test_a_record_that_a_crash_cut_off(tmp_path: Path, content: bytes) -> None:
    assert read_record(tmp_path) is None
    (tmp_path / "record.json").write_bytes(content)
    assert read_record(tmp_path) is None


def test_errors_of_criu(tmp_path: Path) -> None:
    log = tmp_path / "dump.log"
    assert last_errors(log) == ""
    log.write_text(
        "(00.000001) Version: 4.1.1\n"
        "(00.004550) Error (criu/util.c:1533): rlimit: Can't setup RLIMIT_NOFILE for self\n"
        "(00.014871) Error (criu/sockets.c:628): sockets: Can't get 1:16 opt: Operation not "
        "supported\n"
        "(00.014882) Error (criu/cr-dump.c:1681): Dump files (pid: 116) failed with -1\n"
        "(00.015145) Error (criu/cr-dump.c:2111): Dumping FAILED.\n"
    )
    said = last_errors(log)
    assert said.startswith("sockets: Can't get 1:16 opt: Operation not supported; ")
    assert "CRIU 4.2" in said


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ("Version: 4.1.1\n", ""),
        ("Version: 3.16\n", ""),
        ("Version: 3.15\nGitID: v3.15\n", "3.15.0"),
        ("something else", ""),
    ],
)
def test_versions_of_criu(answer: str, problem: str) -> None:
    assert problem in too_old(answer)
    assert bool(problem) == bool(too_old(answer))


@pytest.mark.parametrize(
    ("kind", "version", "problem"),
    [
        ("crun", "1.21", ""),
        ("crun", "1.20.1", "restoring needs crun 1.21.0"),
        ("crun", "", ""),
        ("runc", "1.1.15", ""),
    ],
)
def test_versions_that_restore(kind: str, version: str, problem: str) -> None:
    assert problem in restore_problem(kind, version)
    assert bool(problem) == bool(restore_problem(kind, version))


async def test_a_manifest_is_signed_with_the_key_of_the_node(tmp_path: Path) -> None:
    settings = SettingStore(Database.open(tmp_path / "state.db"))
    spec = SandboxSpec(metadata=SandboxMetadata(name="a", uid="1", namespace="n"))
    sandbox = Sandbox(id=SandboxId("s"), spec=spec, created_at_ns=1, boot_id="b")
    made = manifest.Manifest(
        version=1, made_at_ns=1, agent="0", handler="crun", sandbox=sandbox, containers=()
    )
    first, second = [await manifest.ManifestKey(settings).sign(made) for _ in range(2)]
    assert first == second
    body = first.partition(b'"manifest":')[2][:-1]
    key = settings.get("checkpoint_key")
    assert key is not None
    assert len(key) == 64
    expected = hmac.new(bytes.fromhex(key), body, hashlib.sha256).hexdigest()
    assert json.loads(first)["hmac"] == expected
