# SPDX-License-Identifier: Apache-2.0
"""Blob files: only whole, verified content has a final name, whoever writes at the same time."""

from __future__ import annotations

import errno
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from criagent.base.errors import CorruptError, ExhaustedError
from criagent.image.blobs import BlobFiles, disk_full
from criagent.image.documents.digest import Digest, digest_of, parse_digest

CONTENT = b"content" * 100
DIGEST = digest_of(CONTENT)


@pytest.fixture
def files(tmp_path: Path) -> BlobFiles:
    made = BlobFiles(tmp_path / "blobs")
    made.prepare()
    made.prepare()
    return made


def test_a_stored_blob_reads_back(files: BlobFiles) -> None:
    assert not files.has(DIGEST)
    files.store(DIGEST, CONTENT)
    files.store(DIGEST, CONTENT)
    assert files.has(DIGEST)
    assert files.read(DIGEST, len(CONTENT)) == CONTENT
    assert list(files.all()) == [(DIGEST, len(CONTENT))]
    assert list(files.parts()) == []


@pytest.mark.parametrize("damage", [b"", CONTENT[:-1], CONTENT + b"x", b"X" + CONTENT[1:]])
def test_a_damaged_blob_is_not_read(files: BlobFiles, damage: bytes) -> None:
    files.store(DIGEST, CONTENT)
    files.path(DIGEST).write_bytes(damage)
    with pytest.raises(CorruptError, match="fsck"):
        files.read(DIGEST, 1 << 20)


def test_a_blob_beyond_the_limit_is_not_read(files: BlobFiles) -> None:
    files.store(DIGEST, CONTENT)
    with pytest.raises(CorruptError):
        files.read(DIGEST, len(CONTENT) - 1)


def test_a_missing_blob_is_no_file(files: BlobFiles) -> None:
    with pytest.raises(FileNotFoundError):
        files.read(DIGEST, 10)


def test_sha512_has_a_place_of_its_own(files: BlobFiles) -> None:
    hasher = Digest("sha512", "").hasher()
    hasher.update(CONTENT)
    digest = parse_digest(f"sha512:{hasher.hexdigest()}")
    files.store(digest, CONTENT)
    assert files.read(digest, 1 << 20) == CONTENT
    assert files.path(digest).parent.name == "sha512"


@pytest.mark.parametrize("content", [b"", CONTENT[:-1], CONTENT + b"x", b"X" + CONTENT[1:]])
def test_a_wrong_part_is_deleted(files: BlobFiles, content: bytes) -> None:
    part = files.part(DIGEST)
    part.write_bytes(content)
    with pytest.raises(CorruptError, match=f"received {len(content)} bytes"):
        files.verify_part(DIGEST, len(CONTENT), part)
    assert not part.exists()
    assert not files.has(DIGEST)


def test_a_right_part_gets_its_name(files: BlobFiles) -> None:
    part = files.part(DIGEST)
    part.write_bytes(CONTENT)
    files.verify_part(DIGEST, len(CONTENT), part)
    files.finish(DIGEST, part)
    assert files.read(DIGEST, 1 << 20) == CONTENT
    assert not part.exists()


def test_many_writers_of_one_blob(files: BlobFiles) -> None:
    """Two pulls of one manifest under two tags store it at the same moment."""
    with ThreadPoolExecutor(8) as threads:
        for number in range(30):
            content = b"%d" % number
            digest = digest_of(content)
            for done in [threads.submit(files.store, digest, content) for _ in range(8)]:
                done.result()
            assert files.read(digest, 100) == content
    assert list(files.parts()) == []


def test_storing_leaves_a_download_alone(files: BlobFiles) -> None:
    files.part(DIGEST).write_bytes(b"half")
    files.store(DIGEST, CONTENT)
    assert files.part(DIGEST).read_bytes() == b"half"


def test_removal_takes_the_part_too(files: BlobFiles) -> None:
    files.store(DIGEST, CONTENT)
    files.part(DIGEST).touch()
    files.remove(DIGEST)
    files.remove(DIGEST)
    assert list(files.all()) == []
    assert list(files.parts()) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_told(tmp_path: Path, number: int) -> None:
    with pytest.raises(ExhaustedError, match=str(tmp_path)), disk_full(tmp_path):
        raise OSError(number, "full")


def test_other_failures_pass(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="broken"), disk_full(tmp_path):
        raise OSError(errno.EIO, "broken")
