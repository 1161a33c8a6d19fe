# SPDX-License-Identifier: Apache-2.0
"""Counting a tree that somebody changes meanwhile, or that was made to do harm."""

from __future__ import annotations

import gc
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from criagent.image.snapshots.tree_count import TreeCount

FOREVER = float("inf")


@pytest.fixture(autouse=True)
def no_descriptor_stays_open() -> Iterator[None]:
    gc.collect()
    gc.freeze()  # the collection below sees what this test made, and not the whole run
    before = os.listdir("/proc/self/fd")
    yield
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == len(before)


def counted(top: Path) -> tuple[int, int]:
    count = TreeCount(top)
    assert count.advance(FOREVER)
    assert count.complete
    return count.usage


def du(top: Path) -> tuple[int, int]:
    """What du says without the top itself."""
    found = []
    for option in ("--block-size=1", "--inodes"):
        words = subprocess.run(["du", "-s", option, top], capture_output=True, check=True).stdout
        found.append(int(words.split()[0]))
    return found[0] - top.stat().st_blocks * 512, found[1] - 1


def fill(top: Path) -> None:
    for name in ("a/b/c", "a/empty", "d"):
        (top / name).mkdir(parents=True)
    for number in range(30):
        (top / f"a/b/file{number}").write_bytes(b"x" * number * 1000)
    (top / "a/link").symlink_to("/etc")
    (top / "a/loop").symlink_to(".")
    os.mkfifo(top / "d/fifo")
    with (top / "d/sparse").open("wb") as file:
        file.truncate(1 << 30)
    (top / os.fsdecode(b"d/\xff\xfe")).write_bytes(b"y" * 5000)


def test_it_counts_as_du_does(tmp_path: Path) -> None:
    fill(tmp_path)
    assert counted(tmp_path) == du(tmp_path)


def test_a_file_with_many_names_counts_once(tmp_path: Path) -> None:
    fill(tmp_path)
    (tmp_path / "many").write_bytes(b"x" * 100_000)
    (tmp_path / "twice").write_bytes(b"x" * 50_000)
    for number in range(6):
        os.link(tmp_path / "many", tmp_path / f"d/many{number}")
    os.link(tmp_path / "twice", tmp_path / "a/twice")
    assert counted(tmp_path) == du(tmp_path)


def test_an_empty_tree_is_nothing_and_a_missing_one_an_error(tmp_path: Path) -> None:
    assert counted(tmp_path) == (0, 0)
    with pytest.raises(FileNotFoundError):
        TreeCount(tmp_path / "gone").advance(FOREVER)
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        TreeCount(tmp_path / "file").advance(FOREVER)


def test_portions_add_up_to_the_whole(tmp_path: Path) -> None:
    fill(tmp_path)
    count, portions = TreeCount(tmp_path), 0
    start = time.monotonic()
    while not count.advance(0.0):
        portions += 1
    assert 0 < count.busy_s <= time.monotonic() - start
    assert count.usage == du(tmp_path)
    assert portions > 40


def test_paths_beyond_the_kernels_limit_count(tmp_path: Path) -> None:
    """20 names of 250 bytes are longer than PATH_MAX; a container makes such by relative calls."""
    here = os.open(tmp_path, os.O_RDONLY)
    for _ in range(40):
        os.mkdir("n" * 250, dir_fd=here)
        below = os.open("n" * 250, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(os.open("deepest", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    os.close(here)
    assert counted(tmp_path)[1] == 41
    subprocess.run(["rm", "-rf", tmp_path], check=True)


def test_a_wide_tree_is_counted_in_part_within_its_memory(tmp_path: Path) -> None:
    for number in range(50):
        (tmp_path / f"{number}/below").mkdir(parents=True)
    count = TreeCount(tmp_path, waiting=10)
    assert count.advance(FOREVER)
    assert not count.complete
    assert count.usage[1] == 60


def remove_all(top: Path) -> None:
    subprocess.run(["rm", "-rf", *top.iterdir()], check=True)


def replace_by_links(top: Path) -> None:
    for path in list(top.glob("*")):
        path.rename(f"{path}.old")
        path.symlink_to("/usr")


def move_around(top: Path) -> None:
    """Takes directories from under the count."""
    (top / "elsewhere").mkdir(exist_ok=True)
    for path in list(top.glob("*/*/")):
        if path.parent.name != "elsewhere":
            path.rename(top / "elsewhere" / f"{path.parent.name}-{path.name}-{time.monotonic_ns()}")


@pytest.mark.parametrize("change", [remove_all, replace_by_links, move_around])
@pytest.mark.parametrize("after", [1, 3, 7, 20, 33])
def test_a_tree_that_changes_is_counted_to_an_end(
    tmp_path: Path, change: Callable[[Path], None], after: int
) -> None:
    top = tmp_path / "top"
    for one in range(5):
        for two in range(5):
            (top / f"{one}/{two}/deep/deeper").mkdir(parents=True)
            (top / f"{one}/{two}/file").write_bytes(b"x" * 4096)
    most = du(top)
    count = TreeCount(top)
    for _ in range(after):
        assert not count.advance(0.0)
    change(top)
    assert count.advance(FOREVER)
    used, inodes = count.usage
    assert 0 < inodes <= 2 * most[1]
    assert 0 <= used <= 2 * most[0]
    assert counted(top) == du(top)


def test_the_top_may_be_renamed_away_meanwhile(tmp_path: Path) -> None:
    """As a removal does: the count ends, in the trash or with an error."""
    (tmp_path / "top/a/b").mkdir(parents=True)
    count = TreeCount(tmp_path / "top")
    assert not count.advance(0.0)
    (tmp_path / "top").rename(tmp_path / "trash")
    assert count.advance(FOREVER)
    assert count.usage[1] == 2


def test_a_count_given_up_leaves_nothing_open(tmp_path: Path) -> None:
    fill(tmp_path)
    count = TreeCount(tmp_path)
    for _ in range(10):
        assert not count.advance(0.0)
    count.close()
    count.close()
