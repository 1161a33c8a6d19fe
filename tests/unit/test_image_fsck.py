# SPDX-License-Identifier: Apache-2.0
"""What fsck sees of unpacked layers, and what a repair does to those who use them."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from criagent.image.documents.digest import parse_digest
from criagent.image.layer_contents import Contents
from tests.support.image_node import ImageNode, findings, keep, pulling
from tests.support.pulling import Registry, TarPit, digest, name

BASE, APP, OTHER, PIT = (b"%b layer " % kind * 40 for kind in (b"base", b"app", b"other", b"pit"))


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[ImageNode]:
    one = ImageNode(tmp_path)
    await one.start()
    yield one
    await one.close()


def lose(tree: Path) -> None:
    (tree / "content").unlink()


def gain(tree: Path) -> None:
    (tree / "more").touch()


def cut(tree: Path) -> None:
    (tree / "content").write_bytes(b"x")


def open_up(tree: Path) -> None:
    (tree / "content").chmod(0o4777)


def touch(tree: Path) -> None:
    os.utime(tree / "content", (1, 1))


def mark(tree: Path) -> None:
    os.setxattr(tree / "content", "user.marked", b"1")


def become_a_link(tree: Path) -> None:
    """To something of the same name and without a byte less."""
    size = (tree / "content").stat().st_size
    lose(tree)
    (tree / "content").symlink_to("x" * size)


def vanish(tree: Path) -> None:
    lose(tree)
    tree.rmdir()


@pytest.mark.parametrize("damage", [lose, gain, cut, vanish, open_up, touch, mark, become_a_link])
async def test_fsck_sees_a_damaged_layer_and_makes_it_anew_from_its_blob(
    registry: Registry, node: ImageNode, damage: object
) -> None:
    registry.image(BASE, APP)
    image = await node.pull(name(registry))
    container = node.snapshots.store.get(image.layers[0].chain_id)
    assert container is not None
    damage(node.tree(container))  # type: ignore[operator]
    (layer, *_) = await findings(node)
    assert f"snapshot {container.number}" in layer
    registry.asked.clear()
    assert all(f.repaired for f in (await node.images.fsck(repair=True)).findings)
    assert await findings(node) == []
    assert node.images.all() == [image]
    assert registry.asked == []
    again = node.snapshots.store.get(container.key)
    assert again is not None
    assert (node.tree(again) / "content").read_bytes() == BASE


@pytest.mark.parametrize("lost", [BASE, b"manifest", b"configuration"])
async def test_what_its_blobs_cannot_restore_is_pulled_again(
    registry: Registry, node: ImageNode, lost: bytes
) -> None:
    registry.image(BASE, APP)
    image = await node.pull(name(registry))
    row = node.snapshots.store.get(image.layers[0].chain_id)
    assert row is not None
    cut(node.tree(row))
    named = {b"manifest": image.manifest_digest, b"configuration": image.id}
    node.files.path(parse_digest(named.get(lost, digest(BASE)))).write_bytes(b"x")
    assert all(f.repaired for f in (await node.images.fsck(repair=True)).findings)
    assert await findings(node) == []
    assert node.images.all() == [image]


async def test_an_image_that_its_registry_no_longer_has_is_removed(
    registry: Registry, node: ImageNode
) -> None:
    registry.image(BASE, APP)
    image = await node.pull(name(registry))
    row = node.snapshots.store.get(image.layers[0].chain_id)
    assert row is not None
    cut(node.tree(row))
    node.files.path(parse_digest(digest(BASE))).unlink()
    await registry.stop()
    found = (await node.images.fsck(repair=True)).findings
    assert (found[-1].object, found[-1].repaired) == (f"image {image.id}", True)
    assert "could not be restored" in found[-1].problem
    assert await findings(node) == []
    assert node.images.all() == []


async def test_a_damaged_layer_stays_for_the_container_that_uses_it(
    registry: Registry, node: ImageNode
) -> None:
    registry.image(BASE, OTHER, APP)
    image = await node.pull(name(registry))
    below, damaged, top = (layer.chain_id for layer in image.layers)
    container = await keep(node, top)
    row = node.snapshots.store.get(damaged)
    assert row is not None
    cut(node.tree(row))
    text = " ".join(await findings(node))
    assert "recreate the containers that use it: " + "c" * 13 in text
    await node.images.fsck(repair=True)
    assert node.tree(row).exists()  # what the container has mounted
    assert below in node.layers()
    await node.pull(name(registry))
    assert await findings(node) == []
    new = node.snapshots.store.get(damaged)
    assert new is not None
    assert new.number != row.number
    await node.images.prune()
    assert node.tree(row).exists()
    await node.snapshots.remove(container.id)
    await node.containers.delete(container.id)
    await node.images.prune()
    assert not node.tree(row).exists()
    assert node.tree(new).exists()
    assert await findings(node) == []


async def test_a_repair_leaves_alone_what_a_pull_counts_on(
    registry: Registry, node: ImageNode
) -> None:
    registry.image(BASE, APP, tags=("1",))
    image = await node.pull(name(registry))
    registry.image(BASE, PIT, tags=("2",))
    registry.hook = pit = TarPit(PIT)
    container = node.snapshots.store.get(image.layers[0].chain_id)
    assert container is not None
    async with pulling(node, name(registry, "a/b:2"), pit):
        cut(node.tree(container))
        found = [
            f for f in (await node.images.fsck(repair=True)).findings if f.key == container.key
        ]
        assert [f.repaired for f in found] == [False]
        assert "a pull uses it" in found[0].problem
    await node.images.fsck(repair=True)
    assert await findings(node) == []


def rot(path: Path) -> None:
    """Change a byte of a file and nothing else that stat(2) shows in seconds."""
    facts = path.stat()
    content = path.read_bytes()
    path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))


async def test_content_that_changed_in_place_is_found_by_unpacking_again(
    registry: Registry, node: ImageNode
) -> None:
    registry.image(BASE, APP)
    image = await node.pull(name(registry))
    row = node.snapshots.store.get(image.layers[0].chain_id)
    assert row is not None
    rows = len(node.snapshots.store.all())
    rot(node.tree(row) / "content")
    assert await findings(node) == []
    report = await node.images.fsck(repair=False, contents=Contents.FULL)
    (layer, owner) = report.findings
    assert "'content' has another content" in layer.problem
    assert owner.object.startswith("image ")
    # the one above was not compared: it would be compared with something over a damaged layer
    assert report.compared.layers == 1
    assert ["a layer below it is damaged" in why for why in report.compared.left_out.values()]
    assert len(node.snapshots.store.all()) == rows
    repaired = await node.images.fsck(repair=True, contents=Contents.FULL)
    assert all(finding.repaired for finding in repaired.findings)
    again = await node.images.fsck(repair=False, contents=Contents.FULL)
    assert (again.findings, again.compared.layers, again.compared.left_out) == ([], 2, {})
    assert node.images.all() == [image]


async def test_a_difference_names_the_file_if_the_blob_is_kept(
    registry: Registry, node: ImageNode
) -> None:
    registry.image(BASE)
    image = await node.pull(name(registry))
    row = node.snapshots.store.get(image.layers[0].chain_id)
    assert row is not None
    open_up(node.tree(row))
    (layer, _) = await findings(node)
    assert layer.endswith("changed: 'content' has mode 4777 instead of 0644")


async def test_without_its_blob_a_layer_is_not_compared_and_that_is_said(
    registry: Registry, tmp_path: Path
) -> None:
    node = ImageNode(tmp_path, keep_blobs=False)
    await node.start()
    try:
        registry.image(BASE)
        image = await node.pull(name(registry))
        report = await node.images.fsck(repair=False, contents=Contents.SAMPLE)
        assert (report.findings, report.compared.layers) == ([], 0)
        ((layer, why),) = report.compared.left_out.items()
        assert layer == f"layer {image.layers[0].chain_id}"
        assert why == f"its blob {image.layers[0].digest} is not kept (storage.keep_blobs)"
    finally:
        await node.close()
