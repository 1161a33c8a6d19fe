# SPDX-License-Identifier: Apache-2.0
"""Images of one root directory, unpacked by the storage drivers of two handlers."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from criagent.base.errors import NotFoundError
from criagent.model.image import Image
from tests.support.image_node import ImageNode, findings
from tests.support.pulling import Registry, digest, name

BASE, APP, OTHER = (b"%b layer " % kind * 40 for kind in (b"base", b"app", b"other"))
KATA = {"kata": "native"}
CONTAINER = "c" * 64


@contextlib.asynccontextmanager
async def opened(
    top: Path, handlers: dict[str, str] | None = None, *, keep_blobs: bool = True
) -> AsyncIterator[ImageNode]:
    """An agent with these handlers, until the block ends."""
    node = ImageNode(top, handlers=KATA if handlers is None else handlers, keep_blobs=keep_blobs)
    await node.start()
    try:
        yield node
    finally:
        await node.close()


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[ImageNode]:
    async with opened(tmp_path) as one:
        yield one


def chains(image: Image) -> set[str]:
    return {layer.chain_id for layer in image.layers}


def native(node: ImageNode) -> set[str]:
    """Chain IDs of what the other driver has."""
    return {row.key for row in node.drivers.others["native"].store.all() if row.committed}


async def test_an_image_is_unpacked_for_the_handler_that_it_is_pulled_for(
    registry: Registry, node: ImageNode, tmp_path: Path
) -> None:
    registry.image(BASE, APP)
    image = await node.pull(name(registry), handler="kata")
    assert (node.layers(), native(node)) == (set(), chains(image))
    trees = [path for path in (tmp_path / "snapshots-native").iterdir() if path.name.isdigit()]
    assert len(trees) == 2
    assert await findings(node) == []
    assert await node.images.ready_for(name(registry), "kata") == image


async def test_two_handlers_download_an_image_once(registry: Registry, node: ImageNode) -> None:
    registry.image(BASE, APP)
    one = await node.pull(name(registry), handler="kata")
    two = await node.pull(name(registry))
    assert one.id == two.id
    assert node.layers() == native(node) == chains(one)
    assert [registry.blobs(layer) for layer in (BASE, APP)] == [1, 1]
    numbers = [row.number for row in node.drivers.every()]
    assert len(numbers) == len(set(numbers)) == 4


async def test_a_container_of_another_handler_has_the_image_from_its_blobs(
    registry: Registry, node: ImageNode
) -> None:
    """As with a kubelet that pulls without naming the handler."""
    registry.image(BASE, APP)
    image = await node.pull(name(registry))
    asked = len(registry.asked)
    assert await node.images.ready_for(image.id, "kata") == image
    await node.images.unpack_for(image, "kata")
    await node.images.unpack_for(image, "kata")
    assert native(node) == chains(image)
    assert len(registry.asked) == asked
    assert await findings(node) == []


async def test_without_blobs_it_is_pulled_again(registry: Registry, tmp_path: Path) -> None:
    registry.image(BASE, APP)
    async with opened(tmp_path, keep_blobs=False) as node:
        image = await node.pull(name(registry))
        assert await node.images.ready_for(image.id, "kata") is None
        assert await node.images.ready_for(image.id, "") == image
        await node.images.unpack_for(image, "kata")
        assert native(node) == chains(image)
        assert [path.name for path in node.blob_files()].count(digest(BASE)[7:]) == 0
        assert registry.blobs(BASE) == 2


async def test_without_blobs_and_registry_the_error_has_the_remedy(
    registry: Registry, tmp_path: Path
) -> None:
    registry.image(BASE)
    async with opened(tmp_path, keep_blobs=False) as node:
        image = await node.pull(name(registry))
        registry.content.clear()
        with pytest.raises(NotFoundError, match=r"storage driver native.*keep_blobs = true"):
            await node.images.unpack_for(image, "kata")
        assert node.images.find(image.id) == image


async def test_an_image_is_removed_from_every_driver(registry: Registry, node: ImageNode) -> None:
    registry.image(BASE, APP)
    image = await node.pull(name(registry))
    await node.images.unpack_for(image, "kata")
    await node.images.remove(image.id)
    assert node.drivers.every() == []
    assert node.blob_files() == []


async def test_containers_keep_the_layers_of_their_driver(
    registry: Registry, node: ImageNode
) -> None:
    registry.image(BASE, APP)
    image = await node.pull(name(registry))
    await node.images.unpack_for(image, "kata")
    part = node.drivers.of_handler("kata")
    await part.create_container(CONTAINER, parent=image.layers[-1].chain_id, created_at_ns=1)
    assert node.drivers.of_container(CONTAINER) is part
    await node.images.remove(image.id)
    assert (node.layers(), native(node)) == (set(), chains(image))
    await part.remove(CONTAINER)
    await node.images.collect()
    assert node.drivers.every() == []


async def test_a_handler_that_is_gone_leaves_what_containers_use(
    registry: Registry, tmp_path: Path
) -> None:
    registry.image(BASE, APP)
    registry.image(OTHER, tags=("other",))
    async with opened(tmp_path) as node:
        used = await node.pull(name(registry), handler="kata")
        unused = await node.pull(name(registry, "a/b:other"), handler="kata")
        await node.drivers.of_handler("kata").create_container(
            CONTAINER, parent=used.layers[-1].chain_id, created_at_ns=1
        )
    async with opened(tmp_path, {}) as node:
        assert native(node) == chains(used)
        assert not node.drivers.in_use("native")
        assert node.drivers.of_container(CONTAINER).driver == "native"
        await node.drivers.of_container(CONTAINER).remove(CONTAINER)
        await node.images.collect()
        assert native(node) == set()
        await node.images.unpack_for(unused, "kata")  # a handler of storage.driver by now
        assert node.layers() == chains(unused)


async def test_a_crash_leaves_no_half_layer_of_any_driver(tmp_path: Path) -> None:
    async with opened(tmp_path) as node:
        for part in node.drivers.all():
            await part.create_layer("sha256:" + "a" * 64, parent="", created_at_ns=1)
        assert len(node.drivers.every()) == 2
    async with opened(tmp_path) as node:
        assert node.drivers.every() == []
        for part in node.drivers.all():
            assert not [path for path in part.root.iterdir() if path.name.isdigit()]


async def test_fsck_repairs_the_driver_whose_layer_is_damaged(
    registry: Registry, node: ImageNode
) -> None:
    registry.image(BASE)
    image = await node.pull(name(registry))
    await node.images.unpack_for(image, "kata")
    (good,) = node.snapshots.store.all()
    part = node.drivers.of_handler("kata")
    (bad,) = part.store.all()
    (part.root / str(bad.number) / "fs/content").unlink()
    (first, second) = await findings(node)
    assert first.startswith(f"snapshot {bad.number} (native {bad.key})")
    assert "is not unpacked for native" in second
    await node.images.fsck(repair=True)
    assert await findings(node) == []
    (anew,) = part.store.all()
    assert anew.number != bad.number
    assert node.snapshots.store.all() == [good]


async def test_fsck_keeps_an_image_that_one_driver_still_has(
    registry: Registry, tmp_path: Path
) -> None:
    registry.image(BASE)
    async with opened(tmp_path, keep_blobs=False) as node:
        image = await node.pull(name(registry))
        await node.images.unpack_for(image, "kata")
        part = node.drivers.of_handler("kata")
        (bad,) = part.store.all()
        (part.root / str(bad.number) / "fs/content").unlink()
        registry.content.clear()
        await node.images.fsck(repair=True)
        assert node.images.find(image.id) == image
        assert (node.layers(), native(node)) == (chains(image), set())
        assert await findings(node) == []


async def test_an_image_that_shares_layers_is_whole(registry: Registry, node: ImageNode) -> None:
    """A part of its layers is there for the other driver too: that is no fault."""
    registry.image(BASE, APP)
    registry.image(BASE, OTHER, tags=("other",))
    await node.pull(name(registry))
    await node.pull(name(registry, "a/b:other"), handler="kata")
    assert await findings(node) == []


async def test_each_driver_has_its_usage(registry: Registry, node: ImageNode) -> None:
    registry.image(BASE, APP)
    await node.pull(name(registry), handler="kata")
    default, other = node.images.fs_usages()
    assert default.mountpoint == str(node.top / "snapshots")
    assert other.mountpoint == str(node.top / "snapshots-native")
    assert (other.used_bytes, other.inodes_used) == (2 * 4096, 2)
    assert default.used_bytes == node.on_disk()[0]
