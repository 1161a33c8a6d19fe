# SPDX-License-Identifier: Apache-2.0
"""Which storage driver a root directory gets, and how images are written by the one that copies."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from criagent.base.errors import CorruptError, UnsupportedError
from criagent.config.storage_drivers import KNOWN
from criagent.image.snapshots.drivers import DRIVERS, chosen
from tests.support.image_node import ImageNode, findings, until, until_idle
from tests.support.pulling import Registry, digest, name

BASE, APP, OTHER = (b"%b layer " % kind * 40 for kind in (b"base", b"app", b"other"))
ROOT = Path("/var/lib/criagent")


def test_the_configuration_knows_the_drivers_that_there_are() -> None:
    assert set(KNOWN) == set(DRIVERS)


@pytest.mark.parametrize(
    ("configured", "remembered", "name"),
    [
        ("auto", "", "overlay"),
        ("auto", "native", "native"),
        ("overlay2", "", "overlay"),
        ("overlayfs", "overlay", "overlay"),
        ("native", "", "native"),
        ("native", "native", "native"),
    ],
)
def test_the_driver_of_a_root(configured: str, remembered: str, name: str) -> None:
    assert chosen(configured, remembered, ROOT) == name


def test_a_root_of_another_driver_is_refused_with_the_cure() -> None:
    with pytest.raises(UnsupportedError) as caught:
        chosen("native", "overlay", ROOT)
    text = str(caught.value)
    assert 'set storage.driver = "overlay"' in text
    assert "set another storage.root" in text
    assert "remove all pods and images" in text


def test_a_root_of_a_driver_that_this_version_lacks_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="this version does not have it"):
        chosen("auto", "punched-cards", ROOT)


@pytest.fixture
async def registry() -> AsyncIterator[Registry]:
    one = Registry()
    await one.start()
    yield one
    await one.stop()


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[ImageNode]:
    one = ImageNode(tmp_path, driver="native")
    await one.start()
    yield one
    await one.close()


async def test_copies_are_written_upwards_while_the_rest_arrives(
    registry: Registry, node: ImageNode
) -> None:
    registry.image(BASE, OTHER, APP)
    node.workers.held = {digest(BASE)}
    task = asyncio.create_task(node.pull(name(registry)))
    await until(lambda: registry.blobs(APP) == 1)
    await node.workers.entered.wait()
    assert node.workers.extracted == [digest(BASE)]
    node.workers.release.set()
    await task
    assert node.workers.extracted == [digest(BASE), digest(OTHER), digest(APP)]
    assert await findings(node) == []


async def test_each_layer_has_the_files_below_it(registry: Registry, node: ImageNode) -> None:
    registry.image(BASE, tags=("base",))
    base = await node.pull(name(registry, "a/b:base"))
    (below,) = node.snapshots.store.all()
    (node.tree(below) / "more").write_text("of the base")
    registry.image(BASE, APP, tags=("app",))
    image = await node.pull(name(registry, "a/b:app"))
    assert image.layers[0] == base.layers[0]
    above = node.snapshots.store.get(image.layers[1].chain_id)
    assert above is not None
    assert (node.tree(above) / "more").read_text() == "of the base"
    assert (node.tree(below) / "content").read_bytes() == BASE


async def test_a_copy_that_fails_leaves_nothing(registry: Registry, node: ImageNode) -> None:
    registry.image(BASE, APP)
    node.workers.failure = CorruptError("not a layer")
    with pytest.raises(CorruptError, match="not a layer"):
        await node.pull(name(registry))
    assert node.snapshots.store.all() == []
    assert list(node.snapshots.root.glob("[0-9]*")) == []
    node.workers.failure = None
    await node.pull(name(registry))
    assert await findings(node) == []


async def test_a_cancelled_pull_leaves_its_copies_to_the_other(
    registry: Registry, node: ImageNode
) -> None:
    registry.image(BASE, OTHER, tags=("1",))
    registry.image(BASE, APP, tags=("2",))
    node.workers.held = {digest(BASE)}
    first = asyncio.create_task(node.pull(name(registry, "a/b:1")))
    await node.workers.entered.wait()
    second = asyncio.create_task(node.pull(name(registry, "a/b:2")))
    await until(lambda: registry.blobs(APP) == 1)
    node.workers.held.clear()
    first.cancel()
    image = await second
    await until_idle(node)
    assert node.layers() == {layer.chain_id for layer in image.layers}
    assert await findings(node) == []
