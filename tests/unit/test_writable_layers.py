# SPDX-License-Identifier: Apache-2.0
"""When writable layers are counted, and that nobody waits for it."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest_asyncio

from criagent.config.storage_section import Storage
from criagent.image.snapshots.by_handler import SnapshotsByHandler
from criagent.image.snapshots.drivers.overlay import OverlayDriver
from criagent.image.snapshots.snapshots import Snapshots
from criagent.model.container import Container, ContainerId, ContainerMetadata, ContainerSpec
from criagent.model.sandbox import SandboxId
from criagent.runtime.stats.writable_layers import WritableLayers
from criagent.store.db import Database
from criagent.store.snapshots import SnapshotStore

BLOCK = 4096


class Node:
    """Snapshots on disk, a clock that stands still, and the counts."""

    def __init__(self, root: Path) -> None:
        self.now = 1000.0
        self.pool = ThreadPoolExecutor(2)
        self.db = Database.open(root / "state.db")
        self.rows = SnapshotStore(self.db)
        driver = OverlayDriver(root / "snapshots", Storage(), self.pool)
        self.snapshots = Snapshots(driver, self.rows, self.pool)
        self.layers = self.counts(first_s=60.0)

    def counts(self, **limits: float) -> WritableLayers:
        return WritableLayers(
            drivers=SnapshotsByHandler(default=self.snapshots),
            rootfs=lambda _: Path("/"),
            fs=self.pool,
            counting=self.pool,
            now_ns=lambda: int(self.now * 1e9),
            monotonic=lambda: self.now,
            **limits,
        )

    async def container(
        self, letter: str, files: int = 0, created_at_ns: int = 1, **fields: Any
    ) -> Container:
        container = Container(
            id=ContainerId(letter * 64),
            sandbox_id=SandboxId("0" * 64),
            spec=ContainerSpec(metadata=ContainerMetadata(name=letter), image="i"),
            created_at_ns=created_at_ns,
            boot_id="b",
            handler="crun",
            **fields,
        )
        await self.snapshots.create_container(container.id, parent="", created_at_ns=1)
        self.write(container, files)
        return container

    def write(self, container: Container, files: int) -> None:
        top = self.tree(container)
        for number in range(len(list(top.iterdir())), files):
            (top / str(number)).write_bytes(b"x" * BLOCK)

    def tree(self, container: Container) -> Path:
        snapshot = self.snapshots.store.get(container.id)
        assert snapshot is not None
        return self.snapshots.root / str(snapshot.number) / "fs"

    def inodes(self, container: Container) -> int | None:
        usage = self.layers.usage(container.id)
        return None if usage is None else usage.inodes


@pytest_asyncio.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    one = Node(tmp_path)
    await one.snapshots.prepare()
    yield one
    await one.layers.close()
    one.pool.shutdown()
    one.db.close()


async def test_the_first_answer_has_the_figures_of_small_layers(node: Node) -> None:
    containers = [await node.container(letter, files) for letter, files in (("a", 3), ("b", 0))]
    await node.layers.refresh(containers)
    usage = node.layers.usage(containers[0].id)
    assert usage is not None
    assert (usage.used_bytes, usage.inodes) == (3 * BLOCK, 3)
    assert usage.counted_at_ns == 1000 * 10**9
    assert node.inodes(containers[1]) == 0
    snapshot = node.snapshots.store.get(containers[0].id)
    assert snapshot is not None
    assert (snapshot.used_bytes, snapshot.inodes) == (3 * BLOCK, 3)


async def test_later_counts_wait_for_their_time_and_nobody_for_them(node: Node) -> None:
    container = await node.container("a", 1)
    await node.layers.refresh([container])
    node.write(container, 5)
    node.now += 14
    await node.layers.refresh([container])
    await node.layers.settled()
    assert node.inodes(container) == 1
    node.now += 2
    await node.layers.refresh([container])
    assert node.inodes(container) == 1  # the call has the old figures
    await node.layers.settled()
    assert node.inodes(container) == 5


async def test_a_large_layer_keeps_no_call_and_no_other_layer_waiting(node: Node) -> None:
    many = 4000  # more than one preempted slice of the small one is worth
    node.layers = node.counts(first_s=0.0, slice_s=0.0)  # one entry at a time
    large, small = await node.container("a", many), await node.container("b", 3)
    await node.layers.refresh([large])
    assert node.inodes(large) is None
    await node.layers.refresh([large, small])
    while node.inodes(small) is None:  # noqa: ASYNC110 - nothing tells of one layer's end
        await asyncio.sleep(0)
    assert node.inodes(large) is None
    assert node.inodes(small) == 3
    await node.layers.settled()
    assert node.inodes(large) == many


async def test_a_large_layer_of_a_new_container_was_empty_when_it_was_made(node: Node) -> None:
    made_ns = int(node.now * 1e9)
    node.layers = node.counts(first_s=0.0, slice_s=0.0)
    container = await node.container("a", 300, created_at_ns=made_ns)
    await node.layers.refresh([container])
    usage = node.layers.usage(container.id)
    assert usage is not None
    assert (usage.used_bytes, usage.inodes, usage.counted_at_ns) == (0, 0, made_ns)
    await node.layers.settled()
    assert node.inodes(container) == 300


async def test_a_layer_being_counted_is_not_counted_twice(node: Node) -> None:
    node.layers = node.counts(first_s=0.0, slice_s=0.0)
    container = await node.container("a", 50)
    await asyncio.gather(*(node.layers.refresh([container]) for _ in range(20)))
    await node.layers.settled()
    assert node.inodes(container) == 50


async def test_an_ended_container_is_counted_once_more_and_never_again(node: Node) -> None:
    container = await node.container("a", 1)
    await node.layers.refresh([container])
    node.write(container, 2)
    ended = dataclasses.replace(container, finished_at_ns=int((node.now + 1) * 1e9))
    node.now += 100
    await node.layers.refresh([ended])
    await node.layers.settled()
    assert node.inodes(container) == 2
    node.write(container, 3)
    node.now += 1000
    await node.layers.refresh([ended])
    await node.layers.settled()
    assert node.inodes(container) == 2


async def test_what_goes_while_it_is_counted_is_forgotten(node: Node) -> None:
    node.layers = node.counts(first_s=0.0, slice_s=0.0)
    container = await node.container("a", 50)
    await node.layers.refresh([container])
    await node.snapshots.remove(container.id)
    node.layers.forget(container.id)
    await node.layers.settled()
    assert node.inodes(container) is None
    assert node.snapshots.store.all() == []
    await node.layers.refresh([container])  # a list that was read before
    assert node.inodes(container) is None


async def test_a_layer_that_cannot_be_read_keeps_its_figures(node: Node) -> None:
    container = await node.container("a", 2)
    await node.layers.refresh([container])
    tree = node.tree(container)
    tree.rename(tree.with_name("away"))
    node.now += 100
    await node.layers.refresh([container])
    await node.layers.settled()
    assert node.inodes(container) == 2
    tree.with_name("away").rename(tree)
    node.write(container, 4)
    node.now += 100
    await node.layers.refresh([container])
    await node.layers.settled()
    assert node.inodes(container) == 4


async def test_an_end_in_the_midst_of_a_count_is_clean(node: Node) -> None:
    node.layers = node.counts(first_s=0.0, slice_s=0.0)
    await node.layers.refresh([await node.container("a", 50)])
    await node.layers.close()


async def test_trash_is_empty_for_each_of_several_that_empty_it(node: Node) -> None:
    trash = node.snapshots.root / "trash"
    for number in range(20):
        for name in "abcdef":
            (trash / f"{number}/fs/{name}/deep").mkdir(parents=True)
            (trash / f"{number}/fs/{name}/file").touch()

    async def left() -> list[Path]:
        await node.snapshots.empty_trash()
        return list(trash.iterdir())

    assert list(await asyncio.gather(left(), left(), left())) == [[], [], []]
