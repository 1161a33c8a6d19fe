# SPDX-License-Identifier: Apache-2.0
"""Paths below a root: no link leads out, other processes' renames do no harm."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from criagent.kernel.inotify import Inotify
from criagent.kernel.paths import (
    RESOLVE_NO_SYMLINKS,
    open_in_root,
    openat2,
    read_in_root,
)

IN_OPEN = 0x20
RENAMES = """
import os
os.mkdir("a"); os.mkdir("b"); os.mkdir("a/x")
print("ready", flush=True)
while True:
    os.rename("a/x", "b/x")
    os.rename("b/x", "a/x")
"""


@contextmanager
def renames(directory: Path) -> Iterator[None]:
    """Another process renames in a directory of its own, without end."""
    directory.mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", RENAMES], cwd=directory, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        try:
            yield
            assert process.poll() is None
        finally:
            process.kill()


@pytest.fixture
def root(tmp_path: Path) -> Iterator[int]:
    top = tmp_path / "root"
    (top / "real").mkdir(parents=True)
    (top / "real/file").write_text("content")
    (top / "link").symlink_to("real/../" * 10 + "real")
    fd = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def test_renames_of_other_processes_do_not_fail_a_look_up(root: int, tmp_path: Path) -> None:
    with renames(tmp_path / "other"):
        for _ in range(20_000):
            os.close(open_in_root(root, "link/../link/file", os.O_PATH))


def test_more_renames_than_processors_do_not_fail_a_long_look_up(root: int, tmp_path: Path) -> None:
    """The kernel refuses some of these hundreds of times in a row."""
    os.symlink("real/../" * 200 + "real", "far", dir_fd=root)
    with contextlib.ExitStack() as storm:
        for number in range((os.cpu_count() or 1) * 3):
            storm.enter_context(renames(tmp_path / f"other{number}"))
        for _ in range(5_000):
            os.close(open_in_root(root, "far/file", os.O_PATH))


@pytest.mark.parametrize("target", ["/", "../..", "/real/../../..", "../../../proc/self/root"])
def test_links_end_at_the_root(root: int, target: str) -> None:
    os.symlink(target, "out", dir_fd=root)
    try:
        fd = open_in_root(root, "out", os.O_PATH)
    except FileNotFoundError:
        return
    assert os.path.samestat(os.fstat(fd), os.fstat(root))
    os.close(fd)


def test_a_link_is_refused_where_none_may_be(root: int) -> None:
    with pytest.raises(OSError, match="link"):
        openat2(root, "link/file", os.O_PATH, RESOLVE_NO_SYMLINKS)


def test_a_file_is_read_up_to_its_limit(tmp_path: Path, root: int) -> None:
    top = tmp_path / "root"
    assert read_in_root(top, "link/file", 7) == b"content"
    assert read_in_root(top, "/../link/file", 7) == b"content"
    with pytest.raises(OSError, match="larger than 6 bytes"):
        read_in_root(top, "link/file", 6)
    with pytest.raises(FileNotFoundError):
        read_in_root(top, "link/none", 6)
    assert root


@pytest.mark.parametrize("kind", ["fifo", "directory", "socket"])
def test_what_is_not_a_file_is_not_even_opened(tmp_path: Path, root: int, kind: str) -> None:
    """To open a watchdog device of an image would start the watchdog of the node."""
    path = tmp_path / "root/odd"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    else:
        os.mknod(path, 0o140600)
    events = Inotify()
    events.add(path, IN_OPEN)
    try:
        with pytest.raises(OSError, match="not a regular file"):
            read_in_root(tmp_path / "root", "odd", 10)
        assert list(events.events()) == []
    finally:
        events.close()
    assert root
