# SPDX-License-Identifier: Apache-2.0
"""Programs that decide about images, called as containerd calls its image verifiers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from criagent.base.errors import SignatureRejectedError
from criagent.image.policy.verifiers import Subject, check

SUBJECT = Subject(
    reference="reg.io/a:1", digest="sha256:" + "a" * 64, media_type="application/x", size=7
)


def program(folder: Path, name: str, text: str, mode: int = 0o755) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(mode)


async def test_a_program_learns_of_the_image(tmp_path: Path) -> None:
    folder = tmp_path / "bin"
    program(folder, "one", f'printf "%s\\n" "$@" > {tmp_path}/argv; cat > {tmp_path}/stdin')
    await check(folder, SUBJECT, 10)
    assert (tmp_path / "argv").read_text().split() == [
        "-name",
        "reg.io/a:1",
        "-digest",
        SUBJECT.digest,
        "-stdin-media-type",
        "application/vnd.oci.descriptor.v1+json",
    ]
    assert json.loads((tmp_path / "stdin").read_text()) == {
        "mediaType": "application/x",
        "digest": SUBJECT.digest,
        "size": 7,
    }


async def rejected(folder: Path, limit_s: float = 10) -> str:
    with pytest.raises(SignatureRejectedError) as caught:
        await check(folder, SUBJECT, limit_s)
    return str(caught.value)


async def test_all_programs_are_asked_until_one_rejects(tmp_path: Path) -> None:
    folder = tmp_path / "bin"
    program(folder, "1-good", f"touch {tmp_path}/first")
    program(folder, "2-bad", "echo 'it is too old'; exit 1")
    program(folder, "3-never", f"touch {tmp_path}/third")
    program(folder, "notes.txt", "exit 1", 0o644)
    text = await rejected(folder)
    assert text == "reg.io/a:1: the image verifier 2-bad rejects it: it is too old"
    assert (tmp_path / "first").exists()
    assert not (tmp_path / "third").exists()


async def test_a_program_that_hangs_rejects_and_is_ended(tmp_path: Path) -> None:
    folder = tmp_path / "bin"
    program(folder, "slow", f"echo $$ > {tmp_path}/pid; sleep 1000")
    assert "has not answered for 0.5 s" in await rejected(folder, 0.5)
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}").exists()


async def test_a_program_that_cannot_be_run_rejects(tmp_path: Path) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "gone").symlink_to("/nowhere")
    assert "cannot be run: No such file or directory" in await rejected(folder)


async def test_without_programs_everything_is_admitted(tmp_path: Path) -> None:
    await check(tmp_path / "none", SUBJECT, 10)
    await check(tmp_path, SUBJECT, 10)


async def test_too_many_programs_reject(tmp_path: Path) -> None:
    folder = tmp_path / "bin"
    for number in range(11):
        program(folder, f"p{number}", "exit 0")
    assert "has 11 programs; at most 10 are run" in await rejected(folder)
