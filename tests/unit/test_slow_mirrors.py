# SPDX-License-Identifier: Apache-2.0
"""Mirrors that take a request and do not answer it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from criagent.base.errors import NotFoundError, RegistryError
from tests.support.pulling import SMALL, Hook, Node, Registry, digest, hosts_toml


@pytest.fixture
async def mirror() -> AsyncIterator[Registry]:
    one = Registry()
    await one.start()
    yield one
    await one.stop()


@pytest.fixture
async def hasty(tmp_path: Path, registry: Registry, mirror: Registry) -> AsyncIterator[Node]:
    """A node that gives the mirror of real.test half a second."""
    hosts_toml(tmp_path, "real.test", f'server = "{registry.url}"\n[host."{mirror.url}"]\n')
    one = Node(tmp_path, answer_timeout_s=0.5)
    yield one
    await one.close()


def quiet_about(end: str, opened: asyncio.Event) -> Hook:
    """No answer for paths that end so until `opened`."""

    async def hook(request: web.BaseRequest) -> web.StreamResponse | None:
        if request.path.endswith(end):
            await opened.wait()
        return None

    return hook


async def test_a_silent_mirror_costs_its_time_once_and_is_asked_last_for_a_minute(
    hasty: Node, registry: Registry, mirror: Registry
) -> None:
    image_id = registry.image(SMALL)
    mirror.image(SMALL)
    opened = asyncio.Event()
    mirror.hook = quiet_about("/manifests/1", opened)
    assert (await hasty.pull("real.test/a/b:1")).id == image_id
    assert registry.blobs(SMALL) == 1  # the mirror is not asked again in this pull
    registry.image(b"another", tags=("2",))
    mirror.asked.clear()
    await hasty.pull("real.test/a/b:2")
    assert mirror.asked == []
    opened.set()


async def test_a_silent_mirror_is_named(hasty: Node, registry: Registry, mirror: Registry) -> None:
    opened = asyncio.Event()
    mirror.hook = quiet_about("/manifests/1", opened)
    with pytest.raises(NotFoundError) as caught:
        await hasty.pull("real.test/a/b:1")
    silent = f"{mirror.url}: {mirror.url} has not answered within 0.5 s"
    assert silent in str(caught.value)
    assert f"{registry.url}: GET {registry.url}/v2/" in str(caught.value)
    opened.set()


async def test_a_slow_mirror_has_all_the_time_when_nobody_else_answers(
    hasty: Node, registry: Registry, mirror: Registry
) -> None:
    image_id = mirror.image(SMALL)
    await registry.stop()
    opened, again = asyncio.Event(), asyncio.Event()
    silent = quiet_about("/manifests/1", opened)

    async def hook(request: web.BaseRequest) -> web.StreamResponse | None:
        if mirror.asked.count("/v2/a/b/manifests/1") == 2:
            again.set()
        return await silent(request)

    mirror.hook = hook
    pull = asyncio.create_task(hasty.pull("real.test/a/b:1"))
    await again.wait()
    opened.set()
    assert (await pull).id == image_id


async def test_a_mirror_may_take_longer_for_a_blob(
    hasty: Node, registry: Registry, mirror: Registry
) -> None:
    """A cache may fetch it first, and answer when it has all of it."""
    registry.image(SMALL)
    mirror.image(SMALL)
    opened = asyncio.Event()
    mirror.hook = quiet_about(digest(SMALL), opened)
    asyncio.get_running_loop().call_later(1.5, opened.set)
    await hasty.pull("real.test/a/b:1")
    assert registry.asked == []


async def test_a_stalled_blob_names_its_server_which_the_next_pull_asks_last(
    registry: Registry, mirror: Registry, tmp_path: Path
) -> None:
    hosts_toml(tmp_path, "real.test", f'server = "{registry.url}"\n[host."{mirror.url}"]\n')
    node = Node(tmp_path, timeout_s=0.5)
    registry.image(SMALL)
    mirror.image(SMALL)
    opened = asyncio.Event()
    mirror.hook = quiet_about(digest(SMALL), opened)
    with pytest.raises(RegistryError) as caught:
        await node.pull("real.test/a/b:1")
    assert f"real.test/a/b:1 stalled: {mirror.url} has sent no byte for " in str(caught.value)
    assert "; repair that server, or raise registry.progress_timeout_s" in str(caught.value)
    mirror.asked.clear()
    await node.pull("real.test/a/b:1")
    assert mirror.asked == []
    opened.set()
    await node.close()
