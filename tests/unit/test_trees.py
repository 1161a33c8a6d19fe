# SPDX-License-Identifier: Apache-2.0
"""Trees are deleted whole, however deep, and nothing beside them."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from criagent.kernel.trees import remove_tree


def dig(top: Path, levels: int) -> None:
    """Directories in one another, each with a file."""
    here = os.open(top, os.O_RDONLY)
    for _ in range(levels):
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=here))
        os.mkdir("d", dir_fd=here)
        inner = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(here)


@pytest.mark.parametrize("levels", [0, 1, 199, 200, 201, 1500])
def test_trees_of_any_depth_are_deleted(tmp_path: Path, levels: int) -> None:
    top = tmp_path / "top"
    top.mkdir()
    dig(top, levels)
    before = len(os.listdir("/proc/self/fd"))
    remove_tree(top)
    assert not top.exists()
    assert len(os.listdir("/proc/self/fd")) == before


def test_links_are_deleted_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/file").write_text("x")
    top = tmp_path / "top"
    top.mkdir()
    (top / "link").symlink_to("../outside")
    (top / "dangling").symlink_to("nowhere")
    os.mkfifo(top / "pipe")
    remove_tree(top)
    assert not top.exists()
    assert (tmp_path / "outside/file").exists()


def test_what_is_no_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "file").write_text("x")
    remove_tree(tmp_path / "none")  # gone is fine
    for name in ("link", "file"):
        with pytest.raises(OSError, match=r"\[Errno"):
            remove_tree(tmp_path / name)
    assert (tmp_path / "real").exists()


def test_several_may_delete_a_tree_at_once(tmp_path: Path) -> None:
    for turn in range(20):
        top = tmp_path / str(turn)
        top.mkdir()
        dig(top, 30 if turn else 700)
        with ThreadPoolExecutor(4) as threads:
            done = [threads.submit(remove_tree, top) for _ in range(4)]
        for one in done:
            one.result()
        assert not top.exists()


def test_a_name_is_taken_below_an_open_directory(tmp_path: Path) -> None:
    (tmp_path / "top/inner").mkdir(parents=True)
    parent = os.open(tmp_path, os.O_RDONLY)
    try:
        remove_tree("top", dir_fd=parent)
    finally:
        os.close(parent)
    assert list(tmp_path.iterdir()) == []
