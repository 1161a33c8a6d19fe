# SPDX-License-Identifier: Apache-2.0
"""What a container changed, found with and without an upper directory, and its archive."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
from pathlib import Path

import pytest

from criagent.image.archive.room import Room
from criagent.image.snapshots.changes import Ids, Trees, changes
from criagent.runtime.checkpoint.tar import ShortenedError, TarWriter

SAME = Ids(int, int)


class Place:
    """An image, the root file system that began as its copy, and an upper directory."""

    def __init__(self, top: Path) -> None:
        self.image, self.root, self.upper = top / "image", top / "root", top / "upper"
        self.image.mkdir()
        for name in ("etc/passwd", "etc/group", "usr/bin/sh", "usr/share/doc/text"):
            path = self.image / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(name)
        (self.image / "link").symlink_to("etc")
        shutil.copytree(self.image, self.root, symlinks=True)
        self.upper.mkdir()

    def found(self, *, skipped: frozenset[str] = frozenset(), upper: bool = False) -> set[str]:
        """Paths that changed, deleted ones with a minus."""
        trees = self.trees(upper=upper)
        try:
            return {
                ("-" if change.facts is None else "") + change.path
                for change in changes(trees, SAME, skipped=skipped)
            }
        finally:
            trees.close()

    def trees(self, *, upper: bool = False) -> Trees:
        def one(path: Path) -> int:
            return os.open(path, os.O_RDONLY | os.O_DIRECTORY)

        return Trees(one(self.root), one(self.image), one(self.upper) if upper else None)

    def archived(self) -> tuple[dict[str, tarfile.TarInfo], list[str]]:
        out = io.BytesIO()
        writer = TarWriter(out, Room(self.root), lambda: None)
        trees = self.trees()
        deleted = writer.add_changes(changes(trees, SAME), SAME)
        trees.close()
        writer.close()
        out.seek(0)
        with tarfile.open(fileobj=out) as tar:
            return {member.name: member for member in tar}, deleted


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def kept_time(path: Path, change: str) -> None:
    """Write without changing the time of the directory above."""
    facts = path.parent.stat()
    path.write_text(change)
    os.utime(path.parent, ns=(facts.st_atime_ns, facts.st_mtime_ns))


def test_a_copy_has_no_changes(place: Place) -> None:
    assert place.found() == set()


def test_what_is_new_different_and_deleted(place: Place) -> None:
    kept_time(place.root / "etc/passwd", "longer than it was")
    (place.root / "etc/group").unlink()
    shutil.rmtree(place.root / "usr/share")
    (place.root / "new/deep").mkdir(parents=True)
    (place.root / "new/deep/file").write_text("x")
    assert place.found() == {
        *("etc", "etc/passwd", "-etc/group"),
        *("usr", "-usr/share"),
        *("new", "new/deep", "new/deep/file"),
    }


def test_modes_times_and_kinds(place: Place) -> None:
    (place.root / "etc/passwd").chmod(0o600)
    os.utime(place.root / "etc/group", ns=(1, 1))
    (place.root / "link").unlink()
    (place.root / "link").mkdir()
    (place.root / "link/inside").touch()
    assert place.found() == {"etc/passwd", "etc/group", "link", "link/inside"}


def test_a_directory_that_became_a_link_is_not_followed(place: Place) -> None:
    shutil.rmtree(place.root / "usr")
    (place.root / "usr").symlink_to("/")
    assert place.found() == {"usr"}


def test_what_is_mounted_over_is_skipped(place: Place) -> None:
    (place.root / "etc/hosts").touch()
    (place.root / "etc/group").unlink()
    (place.root / "volume").mkdir()
    (place.root / "volume/file").touch()
    skipped = frozenset({"etc/hosts", "etc/group", "volume"})
    assert place.found(skipped=skipped) == {"etc"}


def test_only_what_the_upper_directory_has_is_looked_at(place: Place) -> None:
    kept_time(place.root / "etc/passwd", "longer than it was")
    kept_time(place.root / "usr/bin/sh", "not looked at")
    (place.upper / "etc").mkdir()
    (place.upper / "etc/passwd").write_text("longer than it was")
    assert place.found(upper=True) == {"etc/passwd"}


def test_a_file_of_the_same_size_and_time_in_the_upper_directory(place: Place) -> None:
    """No time can be forged so that a change is overlooked."""
    facts = (place.image / "etc/passwd").stat()
    kept_time(place.root / "etc/passwd", "etc/PASSWD")
    os.utime(place.root / "etc/passwd", ns=(facts.st_atime_ns, facts.st_mtime_ns))
    (place.upper / "etc").mkdir()
    (place.upper / "etc/passwd").write_text("etc/PASSWD")
    assert place.found(upper=True) == {"etc/passwd"}


def test_too_deep(place: Place) -> None:
    (place.root / "1/2/3/4").mkdir(parents=True)
    trees = place.trees()
    with pytest.raises(OSError, match="too many directories"):
        list(changes(trees, SAME, most_depth=2))
    trees.close()


def test_the_archive_has_every_kind(place: Place) -> None:
    (place.root / "a").write_text("content")
    (place.root / "a").chmod(0o4755)
    os.utime(place.root / "a", ns=(5, 1_000_000_007))
    os.link(place.root / "a", place.root / "b")
    os.mkfifo(place.root / "pipe")
    (place.root / "bytes-\udcff").touch()
    (place.root / "etc/group").unlink()
    found, deleted = place.archived()
    assert deleted == ["/etc/group"]
    assert (found["a"].mode, found["a"].size) == (0o4755, 7)
    assert found["a"].mtime == pytest.approx(1.000000007)
    assert (found["b"].type, found["b"].linkname) == (tarfile.LNKTYPE, "a")
    assert found["pipe"].type == tarfile.FIFOTYPE
    assert "bytes-\udcff" in found


def test_a_file_that_becomes_shorter(place: Place) -> None:
    class Shorter(io.BytesIO):
        def __init__(self, path: Path) -> None:
            super().__init__()
            self.path = path

        def write(self, data: object) -> int:
            os.truncate(self.path, 0)
            return super().write(data)  # type: ignore[arg-type]

    (place.root / "a").write_bytes(bytes(1 << 20))
    writer = TarWriter(Shorter(place.root / "a"), Room(place.root), lambda: None)
    with pytest.raises(ShortenedError):
        writer.add_file(place.root / "a", "a")
