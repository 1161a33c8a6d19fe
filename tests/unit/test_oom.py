# SPDX-License-Identifier: Apache-2.0
"""Whose a kill for want of memory was, when cgroups go before their files are read."""

from __future__ import annotations

import os
import resource
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from criagent.kernel import cgroupfs
from criagent.runtime.container.oom import OomWatch

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

    def kill(self, name: str, processes: int = 1) -> None:
        """The kernel kills processes of it."""
        self._kills += processes
        self._write(scope(name), processes, "max")
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


def settled(tree: Tree, codes: dict[str, int]) -> dict[str, int]:
    """The kills of containers whose ends are written in this order."""
    found = {}
    for name, code in codes.items():
        found[name] = tree.watch.kills(name, scope(name), code=code)
        tree.watch.forget(name)
    return found


@pytest.mark.parametrize("limit", ["max", "1024"])
@pytest.mark.parametrize("number", [2, 3, 8])
async def test_containers_that_are_killed_together_have_a_kill_each(
    tree: Tree, limit: str, number: int
) -> None:
    names = [f"c{n}" for n in range(number)]
    for name in (*names, "other"):
        tree.add(name, limit)
    for name in names:
        tree.kill(name)
    tree.end(*names)
    assert settled(tree, dict.fromkeys(names, 137)) == dict.fromkeys(names, 1)
    tree.end("other")
    assert settled(tree, {"other": 137}) == {"other": 0}


async def test_ends_that_are_written_at_once_have_a_kill_each(tree: Tree) -> None:
    for name in "abc":
        tree.add(name, "1024")
        tree.kill(name)
    tree.end("a", "b", "c")
    kills = [tree.watch.kills(name, scope(name), code=137) for name in "abc"]
    assert kills == [1, 1, 1]
    again = [tree.watch.kills(name, scope(name), code=137) for name in "abc"]
    assert again == kills  # an end that could not be written is asked for again


@pytest.mark.parametrize("order", ["abc", "acb", "bac", "bca", "cab", "cba"])
@pytest.mark.parametrize("processes", [1, 3])
async def test_one_that_only_ends_at_that_time_has_no_kill(
    tree: Tree, order: str, processes: int
) -> None:
    codes = {"a": 137, "b": 137, "c": 0}
    for name in "abc":
        tree.add(name, "max")
    tree.kill("a", processes)
    tree.kill("b", processes)
    tree.end("a", "b", "c")
    found = settled(tree, {name: codes[name] for name in order})
    assert found["c"] == 0
    assert min(found["a"], found["b"]) >= 1


@pytest.mark.parametrize("order", ["ab", "ba"])
async def test_kills_of_one_container_are_not_left_to_a_later_one(tree: Tree, order: str) -> None:
    codes = {"a": 137, "b": 1}
    for name in "abc":
        tree.add(name, "max")
    tree.kill("a", 5)
    tree.end("a", "b")
    found = settled(tree, {name: codes[name] for name in order})
    assert (found["a"] > 0, found["b"]) == (True, 0)
    tree.end("c")
    assert settled(tree, {"c": 137}) == {"c": 0}


async def test_a_kill_that_was_read_leaves_the_others_to_the_others(tree: Tree) -> None:
    for name in "abc":
        tree.add(name, "1024")
        tree.kill(name)
    tree.end("b", "c")
    assert settled(tree, dict.fromkeys("abc", 137)) == dict.fromkeys("abc", 1)


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
