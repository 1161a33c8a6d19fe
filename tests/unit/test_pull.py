# SPDX-License-Identifier: Apache-2.0
"""Pulls against a registry in this process: shared, cancelled, stalled, refused."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from criagent.base.errors import CorruptError, NotFoundError, RegistryError, UnsupportedError
from criagent.image.documents.digest import parse_digest
from criagent.image.documents.manifest import OCI_INDEX, OCI_MANIFEST
from criagent.image.documents.platforms import host_platform
from criagent.image.hosts.credentials import RegistryAuth
from criagent.model.image import Image, Snapshot
from tests.support.pulling import LARGE, SMALL, Json, Node, Registry, digest, entry, name


@pytest.fixture
async def mirror() -> AsyncIterator[Registry]:
    one = Registry()
    await one.start()
    yield one
    await one.stop()


async def test_an_image_arrives_whole(registry: Registry, node: Node) -> None:
    image_id = registry.image(SMALL, LARGE, config={"config": {"Cmd": ["sh"]}})
    image = await node.pull(name(registry))
    assert image.id == image_id
    assert image.repo_tags == (name(registry),)
    assert image.repo_digests == (f"{name(registry, 'a/b')}@{image.manifest_digest}",)
    assert (image.config.cmd, image.pulled_at_ns) == (("sh",), 7)
    for content in (SMALL, LARGE):
        assert node.files.path(parse_digest(digest(content))).read_bytes() == content
    assert {blob.digest for blob in node.blob_rows.all()} == {str(d) for d, _ in node.files.all()}
    assert node.images.find(name(registry)) == image
    assert not node.puller.running


async def test_a_second_pull_asks_for_no_blob_again(registry: Registry, node: Node) -> None:
    registry.image(SMALL, LARGE)
    await node.pull(name(registry))
    registry.asked.clear()
    await node.pull(name(registry))
    assert [path for path in registry.asked if "/blobs/" in path] == []


async def test_an_artifact_without_files_is_refused_with_its_name_and_kind(
    registry: Registry, node: Node
) -> None:
    layer, config = registry.put(SMALL), registry.put(b"{}")
    manifest = {
        "schemaVersion": 2,
        "artifactType": "application/vnd.example.model",
        "config": {**config, "mediaType": "application/vnd.oci.empty.v1+json"},
        "layers": [layer],
    }
    registry.put(json.dumps(manifest).encode(), OCI_MANIFEST, "1")
    with pytest.raises(UnsupportedError, match=r"a/b:1: .*OCI artifact .*vnd\.example\.model"):
        await node.pull(name(registry))
    assert registry.blobs(SMALL) == 0
    assert node.images.all() == []


async def test_the_index_gives_this_platform(registry: Registry, node: Node) -> None:
    here = host_platform()
    image_id = registry.image(SMALL, tags=("inner",))
    inner = entry(registry.content["inner"])
    other = {"digest": "sha256:" + "0" * 64, "size": 1}
    index = {
        "schemaVersion": 2,
        "manifests": [
            {**other, "platform": {"os": "linux", "architecture": "s390x"}},
            {**inner, "platform": {"os": here.os, "architecture": here.architecture}},
        ],
    }
    registry.put(json.dumps(index).encode(), OCI_INDEX, "multi")
    image = await node.pull(name(registry, "a/b:multi"))
    top = digest(registry.content["multi"])
    assert (image.id, image.manifest_digest) == (image_id, inner["digest"])
    assert image.repo_digests == (f"{name(registry, 'a/b')}@{top}",)
    by_digest = await node.pull(name(registry, f"a/b@{top}"))
    assert (by_digest.id, by_digest.repo_tags) == (image_id, image.repo_tags)


async def test_an_image_without_layers(registry: Registry, node: Node) -> None:
    image_id = registry.image(config={"rootfs": {"type": "layers", "diff_ids": None}})
    assert (await node.pull(name(registry))).id == image_id


async def test_pulls_of_one_image_are_one(registry: Registry, node: Node) -> None:
    registry.image(SMALL)
    images = await asyncio.gather(*(node.pull(name(registry)) for _ in range(10)))
    assert len(set(map(str, images))) == 1
    assert registry.blobs(SMALL) == 1
    assert sum(path.endswith("/manifests/1") for path in registry.asked) == 1


async def test_two_tags_share_their_blobs(registry: Registry, node: Node) -> None:
    registry.image(SMALL, LARGE, tags=("1", "2", "3"))
    await asyncio.gather(*(node.pull(name(registry, f"a/b:{tag}")) for tag in "123"))
    assert registry.blobs(SMALL) == 1
    (image,) = node.images.all()
    assert sorted(image.repo_tags) == [name(registry, f"a/b:{tag}") for tag in "123"]


async def test_other_credentials_are_another_pull(registry: Registry, node: Node) -> None:
    registry.image(SMALL)
    await asyncio.gather(
        node.pull(name(registry)), node.pull(name(registry), RegistryAuth(username="u"))
    )
    assert sum(path.endswith("/manifests/1") for path in registry.asked) == 2


class Gate:
    """A hook that holds requests for a path back until it opens."""

    def __init__(self, end: str) -> None:
        self._end = end
        self.reached = asyncio.Event()
        self.opened = asyncio.Event()

    async def __call__(self, request: web.BaseRequest) -> None:
        if request.path.endswith(self._end):
            self.reached.set()
            await self.opened.wait()


async def waiters(node: Node, registry: Registry, count: int) -> list[asyncio.Task[Image]]:
    return [asyncio.create_task(node.pull(name(registry))) for _ in range(count)]


async def test_the_first_waiter_may_leave(registry: Registry, node: Node) -> None:
    image_id = registry.image(SMALL)
    registry.hook = gate = Gate(digest(SMALL))
    first, second = await waiters(node, registry, 2)
    await gate.reached.wait()
    first.cancel()
    await asyncio.wait({first})
    assert first.cancelled()
    gate.opened.set()
    assert (await second).id == image_id
    assert registry.blobs(SMALL) == 1


async def test_the_last_waiter_stops_the_pull(registry: Registry, node: Node) -> None:
    image_id = registry.image(SMALL)
    registry.hook = gate = Gate(digest(SMALL))
    tasks = await waiters(node, registry, 3)
    await gate.reached.wait()
    for task in tasks:
        assert node.puller.running
        task.cancel()
        await asyncio.wait({task})
    await node.puller.close()  # returns when it has stopped
    assert not node.puller.running
    assert node.images.all() == []
    gate.opened.set()
    assert (await node.pull(name(registry))).id == image_id


async def test_a_cancelled_pull_runs_until_it_has_stopped(registry: Registry, node: Node) -> None:
    """Shutdown waits for it."""
    registry.image(SMALL)
    stopping, stop = asyncio.Event(), asyncio.Event()

    @contextlib.asynccontextmanager
    async def slow(*_: object) -> AsyncIterator[list[Snapshot]]:
        try:
            node.unpacker.entered.set()
            await asyncio.Event().wait()
            yield []
        finally:
            stopping.set()
            await stop.wait()

    node.unpacker.unpacked = slow  # type: ignore[method-assign, assignment]
    (task,) = await waiters(node, registry, 1)
    await node.unpacker.entered.wait()
    task.cancel()
    await asyncio.wait({task})
    await stopping.wait()
    assert node.puller.running
    stop.set()
    await node.puller.close()
    assert not node.puller.running


async def test_a_failure_reaches_every_waiter_and_the_next_pull_works(
    registry: Registry, node: Node
) -> None:
    registry.image(SMALL)
    node.unpacker.failure = CorruptError("broken layer")
    done = await asyncio.gather(*await waiters(node, registry, 3), return_exceptions=True)
    assert [str(error) for error in done] == ["broken layer"] * 3
    assert node.images.all() == []
    node.unpacker.failure = None
    await node.pull(name(registry))


@pytest.mark.parametrize("where", ["/manifests/1", "config", "layer", "within"])
async def test_a_silent_server_ends_the_pull(
    registry: Registry, tmp_path: Path, where: str
) -> None:
    image_id = registry.image(SMALL, LARGE)
    silent = asyncio.Event()
    ends = {"config": image_id, "layer": digest(SMALL), "within": digest(SMALL)}

    async def hook(request: web.BaseRequest) -> web.StreamResponse | None:
        if not request.path.endswith(ends.get(where, where)):
            return None
        response = web.StreamResponse(headers={"Content-Length": str(len(SMALL))})
        if where == "within":
            await response.prepare(request)
            await response.write(SMALL[:10])
        await silent.wait()
        return response

    registry.hook = hook
    node = Node(tmp_path, timeout_s=0.2)
    with pytest.raises(RegistryError, match="stalled"):
        await node.pull(name(registry))
    silent.set()
    await node.close()
    assert node.images.all() == []


async def test_a_slow_server_is_no_silent_one(registry: Registry, tmp_path: Path) -> None:
    """Bytes keep a pull alive that lasts longer than the time-out."""
    registry.image(SMALL)
    node = Node(tmp_path, timeout_s=1.5)
    loop = asyncio.get_running_loop()

    async def hook(request: web.BaseRequest) -> web.StreamResponse | None:
        if not request.path.endswith(digest(SMALL)):
            return None
        response = web.StreamResponse(headers={"Content-Length": str(len(SMALL))})
        await response.prepare(request)
        for at in range(0, len(SMALL), 24):
            pause = asyncio.Event()
            loop.call_later(0.2, pause.set)
            await pause.wait()
            await response.write(SMALL[at : at + 24])
        return response

    registry.hook = hook
    start = loop.time()
    await node.pull(name(registry))
    assert loop.time() - start > 1.5
    await node.close()


async def test_waiting_without_a_request_is_no_stall(registry: Registry, tmp_path: Path) -> None:
    """Unpacking, syncing, and another pull that brings the same layer may last."""
    registry.image(SMALL)
    node = Node(tmp_path, timeout_s=0.5)
    node.unpacker.hold.clear()
    (task,) = await waiters(node, registry, 1)
    await node.unpacker.entered.wait()
    done, _ = await asyncio.wait({task}, timeout=1.5)
    assert not done
    node.unpacker.hold.set()
    await task
    await node.close()


async def test_a_pull_that_waits_for_anothers_blob_does_not_stall(
    registry: Registry, tmp_path: Path
) -> None:
    """The first has a long way to go, byte by byte; the second asks nobody meanwhile."""
    registry.image(SMALL, tags=("1", "2"))
    node = Node(tmp_path, timeout_s=1.5)
    loop = asyncio.get_running_loop()

    async def hook(request: web.BaseRequest) -> web.StreamResponse | None:
        if not request.path.endswith(digest(SMALL)):
            return None
        response = web.StreamResponse(headers={"Content-Length": str(len(SMALL))})
        await response.prepare(request)
        for at in range(0, len(SMALL), 24):
            pause = asyncio.Event()
            loop.call_later(0.2, pause.set)
            await pause.wait()
            await response.write(SMALL[at : at + 24])
        return response

    registry.hook = hook
    await asyncio.gather(*(node.pull(name(registry, f"a/b:{tag}")) for tag in "12"))
    assert registry.blobs(SMALL) == 1
    await node.close()


@pytest.mark.parametrize(
    ("manifest", "error"),
    [
        ({}, CorruptError),
        ({"config": entry(b"x"), "layers": []}, NotFoundError),
        ({"config": {"digest": digest(b"x"), "size": 9 << 20}, "layers": []}, CorruptError),
        ({"manifests": []}, NotFoundError),
        ({"manifests": [entry(b"x")]}, NotFoundError),
    ],
)
async def test_bad_manifests(
    registry: Registry, node: Node, manifest: Json, error: type[Exception]
) -> None:
    registry.put(json.dumps({"schemaVersion": 2, **manifest}).encode(), "", "1")
    with pytest.raises(error):
        await node.pull(name(registry))
    assert node.images.all() == []


async def test_an_index_within_an_index_is_followed(registry: Registry, node: Node) -> None:
    image = registry.image(SMALL, tags=("inner",))
    here = host_platform()
    platform = {"os": here.os, "architecture": here.architecture}
    below = entry(registry.content["inner"], platform=platform)
    for _ in range(3):
        below = registry.put(json.dumps({"manifests": [below]}).encode(), OCI_INDEX, "1")
    assert (await node.pull(name(registry))).id == image


async def test_indexes_nest_up_to_a_limit(registry: Registry, node: Node) -> None:
    below = registry.put(json.dumps({"manifests": []}).encode())
    for _ in range(5):
        below = registry.put(json.dumps({"manifests": [below]}).encode(), OCI_INDEX, "1")
    with pytest.raises(NotFoundError, match="nest deeper than 4"):
        await node.pull(name(registry))


async def test_an_entry_without_platform_is_judged_by_its_configuration(
    registry: Registry, node: Node
) -> None:
    """By its configuration: one of another platform and a missing one are passed over."""
    here = host_platform()
    mine = {"os": here.os, "architecture": here.architecture}
    other = {"os": "linux", "architecture": "s390x"}
    registry.image(SMALL, tags=("other",), config=other)
    image = registry.image(LARGE, tags=("mine",), config=mine)
    missing = entry(b"missing")
    unstated = [entry(registry.content[tag]) for tag in ("other", "mine")]
    index = {"manifests": [missing, *unstated, {**missing, "platform": other}]}
    registry.put(json.dumps(index).encode(), OCI_INDEX, "1")
    pulled = await node.pull(name(registry))
    assert (pulled.id, pulled.platform) == (image, f"linux/{here.architecture}")
    known = {blob.digest for blob in node.blob_rows.all()}
    assert {str(found) for found, _ in node.files.all()} == known  # nothing is left unaccounted


async def test_the_error_says_that_no_entry_fits(registry: Registry, node: Node) -> None:
    registry.image(SMALL, tags=("other",), config={"os": "linux", "architecture": "s390x"})
    index = {
        "manifests": [
            entry(registry.content["other"]),
            entry(b"missing"),
            entry(b"arm", platform={"os": "linux", "architecture": "arm64000"}),
        ]
    }
    registry.put(json.dumps(index).encode(), OCI_INDEX, "1")
    with pytest.raises(NotFoundError, match=r"offers linux/arm64000; .*not found"):
        await node.pull(name(registry))


async def test_lower_case_keys_of_a_configuration_count(registry: Registry, node: Node) -> None:
    registry.image(SMALL, config={"config": {"cmd": ["/bin/sleep", "1000"], "env": ["A=nix"]}})
    config = (await node.pull(name(registry))).config
    assert (config.cmd, config.env) == (("/bin/sleep", "1000"), ("A=nix",))


async def test_close_stops_everything(registry: Registry, node: Node) -> None:
    registry.image(SMALL)
    registry.hook = gate = Gate(digest(SMALL))
    tasks = await waiters(node, registry, 2)
    await gate.reached.wait()
    await node.puller.close()
    assert not node.puller.running
    done = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(error, asyncio.CancelledError) for error in done)
    gate.opened.set()
