# SPDX-License-Identifier: Apache-2.0
"""Blobs in ranges, resumed, from mirrors that lie; and servers that answer nonsense."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from criagent.base.errors import CorruptError, InvalidRequestError, NotFoundError, RegistryError
from criagent.image.documents.digest import parse_digest
from criagent.image.documents.manifest import Descriptor
from criagent.image.documents.reference import parse_reference
from criagent.image.hosts.credentials import RegistryAuth
from criagent.image.registry import Progress
from tests.support.pulling import LARGE, RANGE, SMALL, Node, Registry, digest, name, straight


@pytest.fixture
async def mirror() -> AsyncIterator[Registry]:
    one = Registry()
    await one.start()
    yield one
    await one.stop()


async def fetch(node: Node, registry: Registry, content: bytes, claimed: bytes = b"") -> None:
    session = node.client.session(parse_reference(name(registry)), None)
    blob = Descriptor(digest=digest(claimed or content), size=len(content))
    async with asyncio.timeout(20):
        await node.client.fetch_blob(session, blob, Progress())


async def test_a_large_blob_comes_in_ranges(registry: Registry, node: Node) -> None:
    registry.put(LARGE)
    await fetch(node, registry, LARGE)
    asked = sorted(headers["Range"] for headers in registry.headers)
    assert len(asked) == -(-len(LARGE) // RANGE)
    assert node.files.read(parse_digest(digest(LARGE)), 1 << 20) == LARGE
    assert list(node.files.parts()) == []


async def test_a_server_without_ranges_still_serves_large_blobs(
    registry: Registry, node: Node
) -> None:
    registry.ranges = False
    registry.put(LARGE)
    await fetch(node, registry, LARGE)
    assert node.files.read(parse_digest(digest(LARGE)), 1 << 20) == LARGE
    assert list(node.files.parts()) == []


async def test_finished_ranges_are_not_asked_for_by_the_next_client(
    registry: Registry, node: Node, tmp_path: Path
) -> None:
    registry.put(LARGE)

    async def hook(request: web.BaseRequest) -> web.StreamResponse | None:
        start = int(request.headers["Range"].removeprefix("bytes=").partition("-")[0])
        return web.Response(status=503) if start >= 4 * RANGE else None  # four at once

    registry.hook = hook
    with pytest.raises(RegistryError):
        await fetch(node, registry, LARGE)
    done = set(map(int, next(tmp_path.rglob("*.ranges")).read_text().split()))
    await node.close()
    registry.hook = straight
    registry.headers.clear()
    other = Node(tmp_path)
    await fetch(other, registry, LARGE)
    asked = {int(h["Range"].removeprefix("bytes=").partition("-")[0]) for h in registry.headers}
    assert done
    assert asked == set(range(0, len(LARGE), RANGE)) - done
    assert other.files.read(parse_digest(digest(LARGE)), 1 << 20) == LARGE
    await other.close()


async def test_a_small_blob_goes_on_after_a_restart(
    registry: Registry, node: Node, tmp_path: Path
) -> None:
    registry.put(SMALL)
    node.files.part(parse_digest(digest(SMALL))).write_bytes(SMALL[:100])
    await fetch(node, registry, SMALL)
    assert registry.headers[0]["Range"] == "bytes=100-"
    assert node.files.read(parse_digest(digest(SMALL)), 1 << 20) == SMALL


@pytest.mark.parametrize("content", [SMALL, LARGE])
@pytest.mark.parametrize("rubbish", [b"rubbish", b"r" * 6000, b"r" * 100_000])
async def test_a_rotten_part_is_thrown_away(
    registry: Registry, node: Node, content: bytes, rubbish: bytes
) -> None:
    """A crash may leave anything in a part; it costs time, not the pull."""
    registry.put(content)
    part = node.files.part(parse_digest(digest(content)))
    part.write_bytes(rubbish)
    part.with_suffix(".ranges").write_text("0\n8192\nx\n\n")
    await fetch(node, registry, content)
    assert node.files.read(parse_digest(digest(content)), 1 << 20) == content
    assert list(node.files.parts()) == []


@pytest.mark.parametrize("content", [SMALL, LARGE])
async def test_a_server_that_always_lies_fails(
    registry: Registry, node: Node, content: bytes
) -> None:
    claimed = b"something else"
    registry.content[digest(claimed)] = content
    registry.kinds[digest(claimed)] = ""
    for _ in range(2):
        with pytest.raises(CorruptError):
            await fetch(node, registry, content, claimed)
    assert list(node.files.all()) == []
    assert list(node.files.parts()) == []


def stand_in(tmp_path: Path, registry: Registry, mirror: Registry) -> None:
    folder = tmp_path / "certs.d" / "real.test"
    folder.mkdir(parents=True)
    (folder / "hosts.toml").write_text(
        f'server = "http://127.0.0.1:{registry.port}"\n[host."http://127.0.0.1:{mirror.port}"]\n'
    )


LIES = {
    "other content": lambda content: bytes(len(content)),
    "shorter": lambda content: bytes(len(content) - 5),
    "longer": lambda content: bytes(len(content) + 5),
    "nothing": lambda content: b"",
    "half of it": lambda content: bytes(len(content) // 2),
}


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("ranges", [True, False])
async def test_after_a_mirror_that_lies_the_registry_is_asked(
    registry: Registry, mirror: Registry, node: Node, tmp_path: Path, lie: str, *, ranges: bool
) -> None:
    """What the liar sent is not gone on with."""
    stand_in(tmp_path, registry, mirror)
    mirror.ranges = ranges
    image_id = registry.image(SMALL, LARGE)
    mirror.image(SMALL, LARGE)
    for content in (SMALL, LARGE):
        mirror.content[digest(content)] = LIES[lie](content)
    image = await node.pull("real.test/a:1")
    assert image.id == image_id
    assert image.repo_tags == ("real.test/a:1",)
    for content in (SMALL, LARGE):
        assert mirror.blobs(content)
        assert node.files.read(parse_digest(digest(content)), 1 << 20) == content
    assert list(node.files.parts()) == []


async def test_a_mirror_that_lacks_the_image_or_is_silent_about_it(
    registry: Registry, mirror: Registry, node: Node, tmp_path: Path
) -> None:
    stand_in(tmp_path, registry, mirror)
    registry.image(SMALL)
    await node.pull("real.test/a:1")
    assert mirror.blobs(SMALL) == registry.blobs(SMALL) == 1
    with pytest.raises(NotFoundError):
        await node.pull("real.test/a:missing")


async def test_a_mirror_does_not_get_the_registrys_password(
    registry: Registry, mirror: Registry, node: Node, tmp_path: Path
) -> None:
    stand_in(tmp_path, registry, mirror)
    registry.image(SMALL)

    async def hook(request: web.BaseRequest) -> web.StreamResponse | None:
        if "Authorization" in request.headers:
            return None
        return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="x"'})

    registry.hook = mirror.hook = hook
    await node.pull("real.test/a:1", RegistryAuth(username="u", password="p"))
    assert mirror.asked
    assert not any("Authorization" in headers for headers in mirror.headers)
    assert any("Authorization" in headers for headers in registry.headers)


async def test_broken_settings_of_a_mirror_do_not_stop_the_registry(
    registry: Registry, node: Node, tmp_path: Path
) -> None:
    folder = tmp_path / "certs.d" / "real.test"
    folder.mkdir(parents=True)
    (folder / "hosts.toml").write_text(
        f'server = "http://127.0.0.1:{registry.port}"\n'
        '[host."https://127.0.0.1:1"]\nca = "missing.pem"\n'
    )
    registry.image(SMALL)
    await node.pull("real.test/a:1")
    (folder / "hosts.toml").write_text('server = "https://127.0.0.1:1"\nca = "missing.pem"\n')
    with pytest.raises(RegistryError, match=r"No such file|missing"):
        await node.pull("real.test/a:1")
    (folder / "hosts.toml").write_text("nonsense")
    with pytest.raises(InvalidRequestError, match=r"hosts\.toml"):
        await node.pull("real.test/a:1")


@pytest.mark.parametrize(
    "header",
    [
        {"Location": "http://[broken/"},
        {"Location": "//[::zz]/"},
        {"Location": "http://127.0.0.1:99999/"},
        {"Location": "http:///nowhere"},
    ],
)
async def test_malformed_redirects(registry: Registry, node: Node, header: dict[str, str]) -> None:
    async def hook(request: web.BaseRequest) -> web.StreamResponse | None:
        return web.Response(status=307, headers=header)

    registry.hook = hook
    with pytest.raises(RegistryError):
        await node.pull(name(registry))


@pytest.mark.parametrize("realm", ["", "http://[broken", "relative", "http://127.0.0.1:99999/"])
async def test_malformed_realms(registry: Registry, node: Node, realm: str) -> None:
    async def hook(request: web.BaseRequest) -> web.StreamResponse | None:
        return web.Response(status=401, headers={"WWW-Authenticate": f'Bearer realm="{realm}"'})

    registry.hook = hook
    with pytest.raises(RegistryError):
        await node.pull(name(registry))


@pytest.mark.parametrize(
    "answer", [b"", b"[]", b"{}", b'{"token": ""}', b"[" * 100_000, b'{"token": "a\\nb"}']
)
async def test_malformed_tokens(registry: Registry, node: Node, answer: bytes) -> None:
    async def hook(request: web.BaseRequest) -> web.StreamResponse | None:
        if request.path == "/token":
            return web.Response(body=answer)
        realm = f"http://127.0.0.1:{registry.port}/token"
        return web.Response(status=401, headers={"WWW-Authenticate": f'Bearer realm="{realm}"'})

    registry.hook = hook
    with pytest.raises(RegistryError):
        await node.pull(name(registry))
