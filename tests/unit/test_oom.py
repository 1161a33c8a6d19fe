"""Whose a kill for want of memory was, when cgroups go before their files are read."""

from __future__ import annotations

import os
import resource
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from criagent.kernel import cgroupfs
from criagent.runtime.oom import OomWatch

POD = "/kubepods.slice/kubepods-pod1.slice"


class Tree:
    """Files as the kernel shows them of one pod's slice and its scopes."""

    def __init__(self, root: Path, watch: OomWatch) -> None:
        self._root = root
        self._kills = 0
        self.watch = watch
        self._write(POD, 0, "max")

    def add(self, name: str, limit: str) -> None:
        """A container that is watched."""
        self._write(scope(name), 0, limit)
        self.watch.watch(name, scope(name))

    def kill(self, name: str) -> None:
        """The kernel kills a process of it."""
        self._kills += 1
        self._write(scope(name), 1, "max")
        self._write(POD, self._kills, "max")

    def end(self, *names: str) -> None:
        """Their scopes go, and nobody has looked at their files since."""
        for name in names:
            shutil.rmtree(self._root / scope(name)[1:])

    def _write(self, cgroup: str, kills: int, limit: str) -> None:
        directory = self._root / cgroup[1:]
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "memory.events").write_text(f"oom {kills}\noom_kill {kills}\n")
        (directory / "memory.max").write_text(f"{limit}\n")


def scope(name: str) -> str:
    """The cgroup of that container."""
    return f"{POD}/cri-{name}.scope"


@pytest.fixture
async def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Tree]:
    """An empty pod in a directory that stands for /sys/fs/cgroup."""
    monkeypatch.setattr(cgroupfs, "ROOT", tmp_path)
    watch = OomWatch()
    yield Tree(tmp_path, watch)
    watch.close()


async def test_a_kill_that_was_read_counts_for_its_container(tree: Tree) -> None:
    tree.add("a", "max")
    tree.add("b", "max")
    tree.kill("a")
    assert [tree.watch.kills(name, scope(name), code=1) for name in "ab"] == [1, 0]


async def test_the_slice_tells_of_a_kill_whose_scope_is_gone(tree: Tree) -> None:
    tree.add("a", "max")
    tree.kill("a")
    tree.end("a")
    assert tree.watch.kills("a", scope("a"), code=7) == 1


@pytest.mark.parametrize("first", ["limited", "free"])
async def test_of_two_that_end_at_once_the_one_with_a_limit_had_the_kill(
    tree: Tree, first: str
) -> None:
    tree.add("limited", "25165824")
    tree.add("free", "max")
    tree.kill("limited")
    tree.end("limited", "free")
    second = {"limited": "free", "free": "limited"}[first]
    kills = {}
    for name in (first, second):
        kills[name] = tree.watch.kills(name, scope(name), code=5)
        tree.watch.forget(name)
    assert kills == {"limited": 1, "free": 0}


async def test_of_two_that_end_at_once_the_killed_one_had_the_kill(tree: Tree) -> None:
    tree.add("a", "1024")
    tree.add("b", "1024")
    tree.kill("b")
    tree.end("a", "b")
    kills = {}
    for name, code in (("a", 5), ("b", 137)):
        kills[name] = tree.watch.kills(name, scope(name), code=code)
        tree.watch.forget(name)
    assert kills == {"a": 0, "b": 1}


async def test_a_watch_that_failed_leaves_nothing_and_can_be_made_again(tree: Tree) -> None:
    free = os.dup(0)
    os.close(free)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    tree.add("a", "max")
    tree.kill("a")
    tree.watch.forget("a")
    tree.watch.close()
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))  # no descriptor for an inotify
    try:
        tree.watch.watch("a", scope("a"))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    tree.watch.watch("a", scope("a"))
    tree.end("a")
    assert tree.watch.kills("a", scope("a"), code=7) == 1
