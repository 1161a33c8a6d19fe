# SPDX-License-Identifier: Apache-2.0
"""The life of layers and blobs on disk: who waits for whom, what stays, what goes and when."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from criagent.base.errors import AgentError, CorruptError, ExhaustedError, RegistryError
from criagent.image.documents.digest import parse_digest
from criagent.image.registry import shared_downloads
from tests.support.image_node import (
    RETENTION_S,
    ImageNode,
    findings,
    keep,
    pulling,
    until,
    until_idle,
)
from tests.support.pulling import Registry, TarPit, digest, name, straight

BASE, APP, OTHER, PIT = (b"%b layer " % kind * 40 for kind in (b"base", b"app", b"other", b"pit"))


@pytest.fixture
async def evil() -> AsyncIterator[Registry]:
    one = Registry()
    await one.start()
    yield one
    await one.stop()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits long for another one's download."""
    monkeypatch.setattr(shared_downloads, "PATIENCE_S", 0.5)


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[ImageNode]:
    one = ImageNode(tmp_path)
    await one.start()
    yield one
    await one.close()


@pytest.mark.parametrize("present", [True, False])
async def test_a_pull_does_not_wait_for_another_ones_registry(
    registry: Registry, evil: Registry, node: ImageNode, present: bool
) -> None:
    """They share a base layer; the other layer of the first never comes."""
    if present:
        registry.image(BASE, OTHER, tags=("popular",))
        await node.pull(name(registry, "a/b:popular"))
    evil.image(BASE, PIT)
    evil.hook = pit = TarPit(PIT)
    registry.image(BASE, APP)
    async with pulling(node, name(evil), pit) as hostile:
        image = await node.pull(name(registry))
        assert not hostile.done()
        assert node.layers() >= {layer.chain_id for layer in image.layers}
    assert await findings(node) == []


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("place", ["first", "middle", "last"])
async def test_a_layer_that_both_want_is_made_by_whoever_gets_it(
    registry: Registry, evil: Registry, node: ImageNode, place: str
) -> None:
    """The first has the shared layers but one; a pit serves that one. All are in both images."""
    layers = [BASE, OTHER, APP]
    pit = TarPit(layers[["first", "middle", "last"].index(place)])
    evil.image(*layers)
    evil.hook = pit
    registry.image(*layers, tags=("1",))
    async with pulling(node, name(evil), pit) as hostile:
        image = await node.pull(name(registry))
        assert node.layers() == {layer.chain_id for layer in image.layers}
        await hostile  # whoever has the content, has it for all
    assert sorted(node.workers.extracted) == sorted(map(digest, layers))


@pytest.mark.usefixtures("impatient")
async def test_a_blob_that_dribbles_elsewhere_is_fetched_again(
    registry: Registry, evil: Registry, node: ImageNode
) -> None:
    evil.image(PIT)
    evil.hook = pit = TarPit(PIT, sends=PIT[:1])
    registry.image(PIT)
    async with pulling(node, name(evil), pit) as hostile:
        image = await node.pull(name(registry))
        other: Any = await hostile  # its own download is over
        assert other.id == image.id
    assert registry.blobs(PIT) == 1
    assert [path for path in node.blob_files() if "." in path.name] == []


@pytest.mark.usefixtures("impatient")
async def test_a_dribbling_repository_of_the_same_registry_delays_nobody_for_long(
    registry: Registry, node: ImageNode
) -> None:
    registry.image(PIT)
    pit = TarPit(PIT, sends=PIT[:1])

    async def hook(request: web.BaseRequest) -> web.StreamResponse | None:
        return await pit(request) if "/evil/" in request.path else None

    registry.hook = hook
    async with pulling(node, name(registry, "evil/x:1"), pit):
        await node.pull(name(registry, "good/x:1"))


async def test_a_blob_is_fetched_once_while_it_gets_on(registry: Registry, node: ImageNode) -> None:
    registry.image(BASE, APP, tags=("1", "2", "3"))
    registry.image(BASE, OTHER, tags=("4", "5"))
    await asyncio.gather(*(node.pull(name(registry, f"a/b:{tag}")) for tag in "12345"))
    assert registry.blobs(BASE) == 1
    assert node.workers.extracted.count(digest(BASE)) == 1


async def test_a_failed_download_leaves_the_next_one_its_turn(
    registry: Registry, evil: Registry, node: ImageNode
) -> None:
    evil.image(BASE)
    registry.image(BASE)
    reached, fail = asyncio.Event(), asyncio.Event()

    async def hook(request: web.BaseRequest) -> web.StreamResponse | None:
        if not request.path.endswith(digest(BASE)):
            return None
        reached.set()
        await fail.wait()
        return web.Response(status=404)

    evil.hook = hook
    failing = asyncio.create_task(node.pull(name(evil)))
    await reached.wait()
    good = asyncio.create_task(node.pull(name(registry)))
    fail.set()
    await good
    await asyncio.wait({failing})
    assert await findings(node) == []


async def test_layers_of_one_image_are_written_side_by_side(
    registry: Registry, node: ImageNode
) -> None:
    registry.image(BASE, OTHER, APP)
    node.workers.held = {digest(BASE)}
    task = asyncio.create_task(node.pull(name(registry)))
    await until(lambda: len(node.workers.extracted) == 3)
    assert not task.done()
    node.workers.release.set()
    await task


async def test_a_pull_that_is_cancelled_while_it_unpacks_leaves_the_layer_to_the_other(
    registry: Registry, node: ImageNode
) -> None:
    registry.image(BASE, OTHER, tags=("1",))
    registry.image(BASE, APP, tags=("2",))
    node.workers.held = {digest(BASE)}
    first = asyncio.create_task(node.pull(name(registry, "a/b:1")))
    await node.workers.entered.wait()
    second = asyncio.create_task(node.pull(name(registry, "a/b:2")))
    await until(lambda: digest(APP) in node.workers.extracted)
    node.workers.held.clear()
    first.cancel()
    image = await second
    await until_idle(node)
    assert node.layers() == {layer.chain_id for layer in image.layers}
    assert len(list(node.snapshots.root.glob("[0-9]*"))) == 2
    assert await findings(node) == []


async def test_a_wrong_blob_under_a_right_diff_id_spoils_nobodys_layer(
    registry: Registry, evil: Registry, node: ImageNode
) -> None:
    """The claim of a diff ID is proved by each blob that a layer is made of."""
    diff_ids = {"rootfs": {"diff_ids": [digest(BASE)]}}
    evil.image(b"something else", config=diff_ids)
    registry.image(BASE)
    done = await asyncio.gather(
        node.pull(name(evil)), node.pull(name(registry)), return_exceptions=True
    )
    assert isinstance(done[0], CorruptError) or node.layers()
    assert not isinstance(done[1], BaseException)
    (layer,) = node.snapshots.store.all()
    assert (node.tree(layer) / "content").read_bytes() == BASE


@pytest.mark.parametrize("through", [(), (BASE,), (OTHER,), (OTHER, APP)])
async def test_layers_that_need_the_ones_below(
    registry: Registry, node: ImageNode, through: tuple[bytes, ...]
) -> None:
    node.workers.lowers = set(map(digest, through))
    registry.image(BASE, OTHER, APP)
    if BASE in through:  # there is nothing below it
        with pytest.raises(CorruptError, match="link"):
            await node.pull(name(registry))
        assert node.snapshots.store.all() == []
        return
    await node.pull(name(registry))
    assert len(node.workers.extracted) == 3 + len(through)
    assert await findings(node) == []


async def failed(node: ImageNode, registry: Registry) -> None:
    """A pull whose first layer arrives whole, whose second in part, and that is given up then."""
    registry.image(BASE, PIT)
    before = len(node.images.all())
    registry.hook = pit = TarPit(PIT, sends=PIT[:100])
    async with pulling(node, name(registry), pit):
        path = node.files.part(parse_digest(digest(PIT)))
        await until(
            lambda: (
                path.exists() and path.stat().st_size > 0 and digest(BASE) in node.workers.extracted
            )
        )
    registry.hook = straight
    assert len(node.images.all()) == before


async def test_what_a_failed_pull_leaves_is_counted(registry: Registry, node: ImageNode) -> None:
    await failed(node, registry)
    assert node.counted() == node.on_disk()
    assert node.on_disk()[1] == 4  # manifest, configuration, a layer, a part
    assert list(node.snapshots.root.glob("[0-9]*")) == []
    assert await findings(node) == []


async def test_what_a_failed_pull_leaves_serves_the_next_try(
    registry: Registry, node: ImageNode
) -> None:
    await failed(node, registry)
    registry.asked.clear()
    registry.headers.clear()
    await node.pull(name(registry))
    assert registry.blobs(BASE) == 0
    assert any(headers.get("Range") == "bytes=100-" for headers in registry.headers)
    assert node.counted() == node.on_disk()


@pytest.mark.parametrize("how", ["age", "removal", "removal of none", "restart", "prune"])
async def test_what_a_failed_pull_leaves_goes_by_itself(
    registry: Registry, node: ImageNode, tmp_path: Path, how: str
) -> None:
    registry.image(APP, tags=("other",))
    await node.pull(name(registry, "a/b:other"))
    before = node.on_disk()
    await failed(node, registry)
    match how:
        case "age":
            node.later_s = RETENTION_S - 600
            await node.collector.collect(retained_s=RETENTION_S)
            assert node.on_disk()[1] == before[1] + 4
            node.later_s = RETENTION_S + 600
            await node.collector.collect(retained_s=RETENTION_S)
        case "removal":
            registry.image(OTHER, tags=("third",))
            await node.pull(name(registry, "a/b:third"))
            await node.images.remove(name(registry, "a/b:third"))
        case "removal of none":
            await node.images.remove(name(registry))
        case "restart":
            await node.close()
            node = ImageNode(tmp_path)
            await node.start()
        case "prune":
            await node.images.prune()
    assert node.on_disk() == node.counted() == before
    assert await findings(node) == []
    if how == "restart":
        await node.close()


async def test_a_file_of_a_wrong_clock_does_not_stay_for_ever(
    registry: Registry, node: ImageNode
) -> None:
    await failed(node, registry)
    for path in node.blob_files():
        os.utime(path, (4e9, 4e9))  # in a hundred years
    await node.collector.collect(retained_s=RETENTION_S)
    assert node.blob_files() == []


async def test_a_collection_needs_no_call(registry: Registry, tmp_path: Path) -> None:
    """The agent does it by itself, from its start on."""
    node = ImageNode(tmp_path)
    await node.start()
    assert node.images.collecting.running
    await node.close()
    assert not node.images.collecting.running


async def test_a_collection_takes_nothing_that_a_pull_counts_on(
    registry: Registry, evil: Registry, node: ImageNode
) -> None:
    """Nor does it wait for that pull."""
    registry.image(BASE, APP, tags=("1",))
    await node.pull(name(registry))
    evil.image(BASE, PIT)
    evil.hook = pit = TarPit(PIT)
    async with pulling(node, name(evil), pit) as hostile:
        await node.images.remove(name(registry))
        assert not hostile.done()
        left = {path.name for path in node.blob_files()}
        assert digest(BASE).removeprefix("sha256:") in left
        assert digest(APP).removeprefix("sha256:") not in left
        assert len(node.layers()) == 1
        evil.hook = straight
    assert node.counted() == node.on_disk()
    await node.images.collect()
    assert (node.layers(), node.blob_files()) == (set(), [])


async def test_a_full_disk_gives_up_what_failed_pulls_left(
    registry: Registry, node: ImageNode
) -> None:
    await failed(node, registry)
    registry.image(OTHER, tags=("2",))
    node.workers.failure = ExhaustedError("no space left")
    with pytest.raises(ExhaustedError, match="space"):
        await node.pull(name(registry, "a/b:2"))
    assert node.blob_files() == []


async def test_a_layer_that_outlived_its_blob_gets_it_back(
    registry: Registry, node: ImageNode
) -> None:
    """With its row, though the layer need not be unpacked."""
    registry.image(BASE)
    image = await node.pull(name(registry))
    await keep(node, image.layers[-1].chain_id)
    await node.images.remove(image.id)
    assert node.layers() == {image.layers[0].chain_id}
    assert node.blob_files() == []
    await node.pull(name(registry))
    assert node.workers.extracted == [digest(BASE)]
    assert await findings(node) == []
    await node.images.collect()
    assert node.files.has(parse_digest(digest(BASE)))


async def test_a_blob_of_a_failed_pull_is_adopted_by_an_image_that_has_its_layer(
    registry: Registry, node: ImageNode
) -> None:
    """The blob lies there without a row, the layer is unpacked: both belong to the image now."""
    registry.image(BASE, tags=("1",))
    image = await node.pull(name(registry))
    await keep(node, image.layers[-1].chain_id)
    await node.images.remove(image.id)
    registry.image(BASE, PIT, tags=("2",))
    registry.hook = pit = TarPit(PIT)
    node.files.store(parse_digest(digest(BASE)), BASE)
    async with pulling(node, name(registry, "a/b:2"), pit):
        pass
    registry.hook = straight
    await node.pull(name(registry, "a/b:1"))
    assert await findings(node) == []
    await node.images.collect()
    assert node.files.has(parse_digest(digest(BASE)))
    assert node.counted() == node.on_disk()


SEED = int(os.environ.get("CRIAGENT_SEED") or random.SystemRandom().randrange(1 << 32))


@pytest.mark.parametrize("seed", [SEED, 1, 2, 3], ids=["random", "1", "2", "3"])
async def test_any_mix_ends_with_nothing_too_much_and_nothing_missing(
    registry: Registry, evil: Registry, node: ImageNode, seed: int
) -> None:
    """Pulls, cancels, failures, removals and collections over images that share layers."""
    print(f"CRIAGENT_SEED={seed}")
    chance = random.Random(seed)
    contents = [hashlib.sha256(b"%d" % n).digest() * chance.randrange(1, 600) for n in range(8)]
    for server in (registry, evil):
        for tag in range(6):
            count = chance.randrange(1, 5)
            server.image(*chance.sample(contents, count), tags=(f"{tag}",))

    async def broken(request: web.BaseRequest) -> web.StreamResponse | None:
        match chance.randrange(8) if "/blobs/" in request.path else 7:
            case 0:
                return web.Response(status=404)
            case 1:
                return web.Response(body=b"not what was asked for")
            case 2:
                await asyncio.sleep(chance.random() / 50)
        return None

    evil.hook = broken

    async def client() -> None:
        for _ in range(25):
            server = chance.choice((registry, evil))
            text = name(server, f"a/b:{chance.randrange(6)}")
            match chance.randrange(8):
                case 0 | 1:
                    await node.images.remove(text)
                case 2:
                    await node.collector.collect(retained_s=RETENTION_S)
                case 3 | 4:
                    task = asyncio.create_task(node.pull(text))
                    await asyncio.sleep(chance.random() / 30)
                    task.cancel()
                    await asyncio.wait({task})
                    if not task.cancelled():
                        task.exception()
                case _:
                    with contextlib.suppress(AgentError):
                        await node.pull(text)

    await asyncio.gather(*(client() for _ in range(5)))
    await until_idle(node)
    assert node.counted() == node.on_disk()
    assert await findings(node) == []
    evil.hook = straight
    for image in node.images.all():  # what is listed is whole
        for layer in image.layers:
            container = node.snapshots.store.get(layer.chain_id)
            assert container is not None
            content = (node.tree(container) / "content").read_bytes()
            assert digest(content) == layer.diff_id
            assert node.files.path(parse_digest(layer.digest)).read_bytes() == content
    for image in node.images.all():
        await node.images.remove(image.id)
    await node.images.prune()
    assert (node.blob_files(), node.snapshots.store.all()) == ([], [])
    assert list(node.snapshots.root.glob("[0-9]*")) == []
    assert node.images.fs_usages()[0].used_bytes == 0
    assert not node.images.puller.running


async def test_a_stalled_pull_leaves_its_turn(registry: Registry, node: ImageNode) -> None:
    """An error of the registry reaches only who pulls from it."""
    registry.image(BASE)

    async def hook(request: web.BaseRequest) -> web.StreamResponse | None:
        return web.Response(status=403) if "/blobs/" in request.path else None

    registry.hook = hook
    done = await asyncio.gather(
        *(node.pull(name(registry, f"{letter}/x:1")) for letter in "abc"), return_exceptions=True
    )
    assert all(isinstance(error, RegistryError) for error in done)
    registry.hook = straight
    await node.pull(name(registry))
