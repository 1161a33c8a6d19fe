# SPDX-License-Identifier: Apache-2.0
"""One reference, two handlers, two platforms: two images at once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest

from criagent.base.errors import NotFoundError
from criagent.cri.convert.image import image_message
from criagent.image.documents.manifest import OCI_INDEX
from criagent.image.documents.platforms import host_platform
from criagent.model.image import Image
from tests.support.image_node import ImageNode, findings
from tests.support.pulling import Json, Registry, digest, entry, name

HERE, THERE, BOTH = (b"%b layer " % kind * 40 for kind in (b"here", b"there", b"both"))
RISCV = "linux/riscv64"
HANDLERS: Mapping[str, str] = {"emulated": RISCV}


@pytest.fixture
async def registry() -> AsyncIterator[Registry]:
    one = Registry()
    await one.start()
    publish(one)
    yield one
    await one.stop()


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[ImageNode]:
    one = ImageNode(tmp_path, platforms=HANDLERS)
    await one.start()
    yield one
    await one.close()


def publish(registry: Registry, *tags: str) -> None:
    """An index with images of this machine and of another."""
    here = host_platform()
    manifests: list[Json] = []
    for layer, platform in (
        (HERE, {"os": here.os, "architecture": here.architecture}),
        (THERE, {"os": "linux", "architecture": "riscv64"}),
    ):
        registry.image(BOTH, layer, tags=("inner",), config=platform)
        manifests.append({**entry(registry.content["inner"]), "platform": platform})
    index = {"schemaVersion": 2, "manifests": manifests}
    registry.put(json.dumps(index).encode(), OCI_INDEX, *(tags or ("multi",)))


def multi(registry: Registry) -> str:
    return name(registry, "a/b:multi")


def layers(image: Image) -> set[str]:
    return {layer.diff_id for layer in image.layers}


async def test_each_handler_has_its_platform(registry: Registry, node: ImageNode) -> None:
    here, there = await asyncio.gather(
        node.pull(multi(registry)), node.pull(multi(registry), handler="emulated")
    )
    assert layers(here) == {digest(BOTH), digest(HERE)}
    assert layers(there) == {digest(BOTH), digest(THERE)}
    assert here.id != there.id
    assert node.images.find(multi(registry)) == here
    assert node.images.find(multi(registry), "emulated") == there
    assert node.images.find(there.id) == there
    top = f"{name(registry, 'a/b')}@{digest(registry.content['multi'])}"
    assert node.images.find(top) == here
    assert node.images.find(top, "emulated") == there
    assert registry.blobs(BOTH) == 1
    assert await findings(node) == []


async def test_lists_have_both_with_their_names(registry: Registry, node: ImageNode) -> None:
    there = await node.pull(multi(registry), handler="emulated")
    shown = image_message(there, pinned=False)
    assert list(shown.repo_tags) == [multi(registry)]
    assert list(shown.repo_digests) == [*there.all_digests]
    assert node.images.shown_name(there, there.id) == multi(registry)


async def test_an_image_of_another_platform_is_none(registry: Registry, node: ImageNode) -> None:
    await node.pull(multi(registry))
    assert await node.images.ready_for(multi(registry), "emulated") is None
    with pytest.raises(NotFoundError, match="on this node for linux/riscv64, the platform of its"):
        node.images.resolve(multi(registry), "emulated")


async def test_a_platform_that_is_not_offered_is_named(registry: Registry, node: ImageNode) -> None:
    registry.image(BOTH, tags=("inner",))
    only = {**entry(registry.content["inner"]), "platform": {"os": "linux", "architecture": "arm"}}
    index = json.dumps({"schemaVersion": 2, "manifests": [only]}).encode()
    registry.put(index, OCI_INDEX, "arm")
    with pytest.raises(NotFoundError, match=r"no image for platform linux/riscv64.*linux/arm"):
        await node.pull(name(registry, "a/b:arm"), handler="emulated")


async def test_a_tag_moves_within_its_platform(registry: Registry, node: ImageNode) -> None:
    here = await node.pull(multi(registry))
    old = await node.pull(multi(registry), handler="emulated")
    registry.image(BOTH, HERE, THERE, tags=("multi",))
    new = await node.pull(multi(registry), handler="emulated")
    assert node.images.find(multi(registry)) == here
    assert node.images.find(multi(registry), "emulated") == new
    left = node.images.find(old.id)
    assert left is not None
    assert (left.all_tags, left.all_digests) == ((), old.all_digests)


async def test_each_is_removed_alone(registry: Registry, node: ImageNode) -> None:
    here = await node.pull(multi(registry))
    there = await node.pull(multi(registry), handler="emulated")
    await node.images.remove(multi(registry), "emulated")
    assert node.images.all() == [here]
    assert node.layers() == {layer.chain_id for layer in here.layers}
    await node.pull(multi(registry), handler="emulated")
    await node.images.remove(here.id)
    assert [image.id for image in node.images.all()] == [there.id]


async def test_one_image_for_both_platforms_has_both_names(
    registry: Registry, node: ImageNode
) -> None:
    """A manifest without an index is for every platform."""
    image_id = registry.image(BOTH, tags=("one",))
    one = name(registry, "a/b:one")
    await node.pull(one)
    image = await node.pull(one, handler="emulated")
    assert image.id == image_id
    assert node.images.find(one) == node.images.find(one, "emulated") == image
    assert image.all_tags == (one,)
    names, removed = await node.images.remove_name(one)
    assert (names, removed) == ((one, *image.repo_digests), "")
    assert node.images.find(one) is None
    assert node.images.find(one, "emulated") is not None


async def test_names_are_there_after_a_restart(registry: Registry, tmp_path: Path) -> None:
    node = ImageNode(tmp_path, platforms=HANDLERS)
    await node.start()
    here, there = (
        await node.pull(multi(registry)),
        await node.pull(multi(registry), handler="emulated"),
    )
    await node.close()
    node = ImageNode(tmp_path, platforms=HANDLERS)
    await node.start()
    assert node.images.find(multi(registry)) == here
    assert node.images.find(multi(registry), "emulated") == there
    assert await findings(node) == []
    await node.close()


async def test_a_damaged_image_is_repaired_for_its_platform(
    registry: Registry, tmp_path: Path
) -> None:
    """Without blobs, by a pull of the index for the same platform."""
    node = ImageNode(tmp_path, platforms=HANDLERS, keep_blobs=False)
    await node.start()
    there = await node.pull(multi(registry), handler="emulated")
    top = there.layers[-1].chain_id
    (bad,) = [row for row in node.snapshots.store.all() if row.key == top]
    (node.tree(bad) / "content").unlink()
    await node.images.fsck(repair=True)
    assert await findings(node) == []
    assert node.images.find(there.id) == there
    await node.close()
