# SPDX-License-Identifier: Apache-2.0
"""Blobs of unpacked layers, which `storage.keep_blobs = false` drops."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from criagent.base.errors import NotFoundError
from tests.support.image_node import ImageNode, findings
from tests.support.pulling import Registry, digest, name

BASE, APP, OTHER = (b"%b layer " % kind * 40 for kind in (b"base", b"app", b"other"))


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[ImageNode]:
    one = ImageNode(tmp_path, keep_blobs=False)
    await one.start()
    yield one
    await one.close()


async def test_they_go_with_the_pull_and_nothing_misses_them(
    registry: Registry, node: ImageNode
) -> None:
    registry.image(BASE, APP)
    image = await node.pull(name(registry))
    assert {path.name for path in node.blob_files()} == {
        image.id.removeprefix("sha256:"),
        image.manifest_digest.removeprefix("sha256:"),
    }
    assert node.counted() == node.on_disk()
    assert await findings(node) == []
    assert (await node.collector.collect()).blobs == 0


async def test_an_image_that_shares_a_layer_fetches_the_rest_alone(
    registry: Registry, node: ImageNode
) -> None:
    registry.image(BASE, APP, tags=("first",))
    await node.pull(name(registry, "a/b:first"))
    registry.image(BASE, OTHER, tags=("second",))
    registry.asked.clear()
    await node.pull(name(registry, "a/b:second"))
    assert (registry.blobs(BASE), registry.blobs(OTHER)) == (0, 1)
    await node.pull(name(registry, "a/b:first"))
    assert registry.blobs(APP) == 0
    assert node.counted() == node.on_disk()


async def test_an_export_says_what_is_missing(
    registry: Registry, node: ImageNode, tmp_path: Path
) -> None:
    registry.image(BASE)
    await node.pull(name(registry))
    with pytest.raises(NotFoundError, match=r"storage\.keep_blobs"):
        await node.images.export_archive([name(registry)], tmp_path / "archive")


async def test_a_damaged_layer_is_fetched_again(registry: Registry, node: ImageNode) -> None:
    registry.image(BASE, APP)
    await node.pull(name(registry))
    top = max(node.snapshots.store.all(), key=lambda snapshot: snapshot.number)
    shutil.rmtree(node.tree(top))
    registry.asked.clear()
    assert len((await node.images.fsck(repair=True)).findings) > 0
    assert (registry.blobs(APP), registry.blobs(BASE)) == (1, 0)
    assert await findings(node) == []


async def test_those_that_a_crash_left_go_at_the_start(registry: Registry, tmp_path: Path) -> None:
    """And those of a time when they were kept."""
    node = ImageNode(tmp_path)
    await node.start()
    registry.image(BASE, APP)
    await node.pull(name(registry))
    assert len(node.blob_files()) == 4
    await node.close()
    node = ImageNode(tmp_path, keep_blobs=False)
    await node.start()
    assert len(node.blob_files()) == 2
    assert await findings(node) == []
    await node.close()


async def test_kept_again_they_return_with_the_next_pull(
    registry: Registry, tmp_path: Path
) -> None:
    node = ImageNode(tmp_path, keep_blobs=False)
    await node.start()
    registry.image(BASE)
    await node.pull(name(registry))
    await node.close()
    node = ImageNode(tmp_path)
    await node.start()
    await node.pull(name(registry))
    assert digest(BASE).removeprefix("sha256:") in {path.name for path in node.blob_files()}
    assert await findings(node) == []
    await node.close()
