# SPDX-License-Identifier: Apache-2.0
"""Ranges are an option: every way in which servers do not serve them, and sizes that are lies."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import pytest
from aiohttp import web

from criagent.base.errors import CorruptError, ExhaustedError, NotFoundError, RegistryError
from criagent.image.documents.digest import parse_digest
from criagent.image.documents.manifest import Descriptor
from criagent.image.documents.reference import parse_reference
from criagent.image.registry import Progress
from tests.support.pulling import (
    LARGE,
    RANGE,
    SMALL,
    Hook,
    Node,
    Registry,
    digest,
    hosts_toml,
    name,
    ranged,
    straight,
)

SIZE = len(LARGE)


@pytest.fixture
async def registry() -> AsyncIterator[Registry]:
    one = Registry()
    await one.start()
    one.put(LARGE)
    one.put(SMALL)
    yield one
    await one.stop()


@pytest.fixture
async def other() -> AsyncIterator[Registry]:
    one = Registry()
    await one.start()
    yield one
    await one.stop()


async def fetch(
    node: Node, registry: Registry, content: bytes, urls: Sequence[str] = (), kind: str = ""
) -> None:
    session = node.client.session(parse_reference(name(registry)), None)
    blob = Descriptor(digest=digest(content), size=len(content), urls=tuple(urls), media_type=kind)
    async with asyncio.timeout(20):
        await node.client.fetch_blob(session, blob, Progress())


def stored(node: Node, content: bytes) -> bool:
    whole = node.files.read(parse_digest(digest(content)), 1 << 20) == content
    return whole and list(node.files.parts()) == []


def status(code: int) -> Callable[[str], web.Response]:
    return lambda _: web.Response(status=code, text="range not signed")


def of(span: str, body: bytes, **fields: str) -> Callable[[str], web.Response]:
    headers = {"Content-Range": span, **{k.replace("_", "-"): v for k, v in fields.items()}}
    return lambda _: web.Response(status=206, body=body, headers=headers)


def first(header: str) -> int:
    return int(header.removeprefix("bytes=").partition("-")[0])


def shifted(header: str) -> web.Response:
    return ranged(LARGE, f"bytes={first(header) + 1}-")


REFUSALS: dict[str, Callable[[str], web.Response]] = {
    **{str(code): status(code) for code in (400, 403, 405, 406, 412, 416, 422, 500, 501)},
    "200": lambda _: web.Response(body=LARGE),
    "whole": of(f"bytes 0-{SIZE - 1}/{SIZE}", LARGE),
    "whole without a span": lambda _: web.Response(status=206, body=LARGE),
    "span of the range, body whole": lambda header: web.Response(
        status=206, body=LARGE, headers={"Content-Range": f"{header.replace('=', ' ')}/{SIZE}"}
    ),
    "another span": shifted,
    "another total": of(f"bytes 0-{RANGE - 1}/{SIZE + 1}", LARGE[:RANGE]),
    "no span": of("none", LARGE[:RANGE]),
    "unsatisfied": of(f"bytes */{SIZE}", LARGE[:RANGE]),
    "multipart": of(
        f"bytes 0-{RANGE - 1}/{SIZE}",
        LARGE[:RANGE],
        Content_Type="multipart/byteranges; boundary=x",
    ),
    "encoded": of(f"bytes 0-{RANGE - 1}/{SIZE}", LARGE[:RANGE], Content_Encoding="gzip"),
}


def only_whole(refusal: Callable[[str], web.Response], after: int = 0) -> Hook:
    """A server that serves ranges below `after` alone."""

    async def hook(request: web.BaseRequest) -> web.StreamResponse | None:
        header = request.headers.get("Range")
        return None if header is None or first(header) < after else refusal(header)

    return hook


@pytest.mark.parametrize("refusal", REFUSALS)
@pytest.mark.parametrize("after", [0, 4 * RANGE])
async def test_a_refused_range_makes_one_stream(
    node: Node, registry: Registry, refusal: str, after: int
) -> None:
    registry.hook = only_whole(REFUSALS[refusal], after)
    await fetch(node, registry, LARGE)
    assert stored(node, LARGE)
    assert [h for h in registry.headers if "Range" not in h] == registry.headers[-1:]


RESUMES: dict[str, Callable[[str], web.Response]] = {
    **{str(code): status(code) for code in (400, 403, 412, 416, 501)},
    "whole": of(f"bytes 0-{len(SMALL) - 1}/{len(SMALL)}", SMALL),
    "another span": of(f"bytes 99-{len(SMALL) - 1}/{len(SMALL)}", SMALL[99:]),
    "another total": of(f"bytes 100-{len(SMALL)}/{len(SMALL) + 1}", SMALL[100:] + b"x"),
    "multipart": of(
        f"bytes 100-{len(SMALL) - 1}/{len(SMALL)}",
        SMALL[100:],
        Content_Type="multipart/byteranges; boundary=x",
    ),
}


@pytest.mark.parametrize("refusal", RESUMES)
async def test_a_part_is_not_gone_on_with_where_ranges_are_refused(
    node: Node, registry: Registry, refusal: str
) -> None:
    registry.hook = only_whole(RESUMES[refusal])
    node.files.part(parse_digest(digest(SMALL))).write_bytes(SMALL[:100])
    await fetch(node, registry, SMALL)
    assert stored(node, SMALL)
    assert [headers.get("Range") for headers in registry.headers] == ["bytes=100-", None]


async def test_a_range_that_nobody_asked_for_is_told(node: Node, registry: Registry) -> None:
    async def hook(request: web.BaseRequest) -> web.StreamResponse | None:
        return shifted("bytes=0-")

    registry.hook = hook
    with pytest.raises(RegistryError, match="not requested"):
        await fetch(node, registry, LARGE)


async def test_answers_that_bring_less_of_a_range_are_gone_on_with(
    node: Node, registry: Registry
) -> None:
    """A server may send less than it is asked for (RFC 9110, section 15.3.7)."""

    async def hook(request: web.BaseRequest) -> web.StreamResponse | None:
        start, stop = map(int, request.headers["Range"].removeprefix("bytes=").split("-"))
        return ranged(LARGE, f"bytes={start}-{min(stop, start + 1500)}")

    registry.hook = hook
    await fetch(node, registry, LARGE)
    assert stored(node, LARGE)
    assert all("Range" in headers for headers in registry.headers)


async def test_ranges_are_asked_for_by_four_workers(node: Node, registry: Registry) -> None:
    under_way, most = 0, 0

    async def hook(request: web.BaseRequest) -> web.StreamResponse | None:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0)
        under_way -= 1
        return None

    registry.hook = hook
    await fetch(node, registry, LARGE)
    assert 1 <= most <= 4


@pytest.mark.parametrize("size", [2**53 - 1, 5 << 40, 1 << 50])
async def test_a_size_that_the_disk_has_not_is_refused_before_anything_is_made(
    node: Node, registry: Registry, size: int
) -> None:
    session = node.client.session(parse_reference(name(registry)), None)
    blob = Descriptor(digest=digest(SMALL), size=size)
    tasks = len(asyncio.all_tasks())
    with pytest.raises(ExhaustedError, match=rf"{size} bytes, but only \d+ are free"):
        await node.client.fetch_blob(session, blob, Progress())
    assert len(asyncio.all_tasks()) == tasks
    assert registry.asked == []
    assert list(node.files.parts()) == []


async def test_a_size_that_the_disk_has_makes_no_more_tasks_or_files(
    node: Node, registry: Registry, tmp_path: Path
) -> None:
    disk = os.statvfs(tmp_path)
    size = disk.f_bavail * disk.f_frsize // 2
    tasks = 0

    async def hook(request: web.BaseRequest) -> web.StreamResponse | None:
        nonlocal tasks
        tasks = max(tasks, len(asyncio.all_tasks()))
        return web.Response(status=404)

    registry.hook = hook
    session = node.client.session(parse_reference(name(registry)), None)
    with pytest.raises(NotFoundError):
        await node.client.fetch_blob(
            session, Descriptor(digest=digest(SMALL), size=size), Progress()
        )
    assert 0 < tasks < 30


async def test_a_slow_registry_does_not_hold_up_the_same_blob_of_another(
    node: Node, registry: Registry, other: Registry
) -> None:
    """Anybody may name the digest of a popular layer in an image of his own."""
    other.put(SMALL)
    arrived, held = asyncio.Event(), asyncio.Event()

    async def slow(request: web.BaseRequest) -> web.StreamResponse | None:
        arrived.set()
        await held.wait()
        return None

    registry.hook = slow
    hostile = asyncio.create_task(fetch(node, registry, SMALL))
    await arrived.wait()
    await fetch(node, other, SMALL)
    assert stored(node, SMALL)
    held.set()
    await hostile
    assert stored(node, SMALL)


async def test_one_registry_is_asked_once_for_a_blob_that_two_pulls_want(
    node: Node, registry: Registry
) -> None:
    await asyncio.gather(*(fetch(node, registry, SMALL) for _ in range(5)))
    assert registry.blobs(SMALL) == 1


FOREIGN = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"


async def test_a_foreign_layer_comes_from_its_urls(
    node: Node, registry: Registry, other: Registry, tmp_path: Path
) -> None:
    """No credentials and none of hosts.toml's fields go there."""
    content = b"foreign"
    other.put(content)
    server = f"127.0.0.1:{registry.port}"
    hosts_toml(tmp_path, server, f'server = "http://{server}"\n[header]\nX-Key = "secret"\n')
    urls = ["ftp://x/y", "no url", f"{other.url}/missing", f"{other.url}/x/{digest(content)}"]
    await fetch(node, registry, content, urls, FOREIGN)
    assert stored(node, content)
    assert registry.blobs(content) == 1
    for headers in other.headers:
        assert not {"Authorization", "X-Key", "Cookie"} & set(headers)


async def test_the_registry_comes_before_the_urls(
    node: Node, registry: Registry, other: Registry
) -> None:
    await fetch(node, registry, SMALL, [f"{other.url}/x"], FOREIGN)
    assert other.asked == []


@pytest.mark.parametrize(
    ("urls", "text"),
    [
        ([], "foreign layer.*no urls"),
        (["file:///etc/passwd"], "foreign layer.*expected http"),
        (["{other}/x", "http://127.0.0.1:1/"], "foreign layer.*404.*Connection refused"),
    ],
)
async def test_a_foreign_layer_that_nobody_has_is_called_one(
    node: Node, registry: Registry, other: Registry, urls: list[str], text: str
) -> None:
    places = [url.format(other=other.url) for url in urls]
    with pytest.raises(NotFoundError, match=text):
        await fetch(node, registry, b"foreign", places, FOREIGN)


async def test_a_foreign_layer_of_another_digest_is_refused(
    node: Node, registry: Registry, other: Registry
) -> None:
    async def hook(request: web.BaseRequest) -> web.StreamResponse | None:
        return web.Response(body=b"changed")

    other.hook = hook
    with pytest.raises(NotFoundError, match="digest"):
        await fetch(node, registry, b"foreign", [f"{other.url}/x"])
    assert list(node.files.parts()) == []


async def test_a_blob_without_urls_is_plainly_missing(node: Node, registry: Registry) -> None:
    registry.hook = straight
    with pytest.raises(NotFoundError) as failure:
        await fetch(node, registry, b"missing")
    assert "foreign" not in str(failure.value)
    assert str(failure.value).startswith(f"{name(registry)} not found")


async def test_an_image_with_a_foreign_layer_is_pulled(
    node: Node, registry: Registry, other: Registry
) -> None:
    image_id = registry.image(SMALL, b"foreign")
    manifest = registry.content["1"].replace(
        b'"digest": "%s"' % digest(b"foreign").encode(),
        b'"urls": ["%s/x/%s"], "digest": "%s"'
        % (other.url.encode(), digest(b"foreign").encode(), digest(b"foreign").encode()),
    )
    registry.put(manifest, registry.kinds["1"], "1")
    other.put(b"foreign")
    del registry.content[digest(b"foreign")]
    assert (await node.pull(name(registry))).id == image_id
    assert len(other.asked) == 1


async def test_what_a_mirror_began_the_registry_ends(
    node: Node, registry: Registry, other: Registry, tmp_path: Path
) -> None:
    """A mirror that breaks off without getting on is left; its bytes are not requested again."""
    hosts_toml(tmp_path, "real.test", f'server = "{registry.url}"\n[host."{other.url}"]\n')
    other.put(SMALL)
    asked, seen = 0, asyncio.Event()

    class Watched(Progress):
        def received(self, count: int) -> None:
            seen.set()

    async def hook(request: web.BaseRequest) -> web.StreamResponse | None:
        nonlocal asked
        asked += 1
        if asked > 1:
            return web.Response(status=502)
        response = web.StreamResponse(headers={"Content-Length": str(len(SMALL))})
        await response.prepare(request)
        await response.write(SMALL[:100])
        await seen.wait()
        assert request.transport is not None
        request.transport.close()
        return response

    other.hook = hook
    session = node.client.session(parse_reference("real.test/a/b:1"), None)
    blob = Descriptor(digest=digest(SMALL), size=len(SMALL))
    await node.client.fetch_blob(session, blob, Watched())
    assert stored(node, SMALL)
    assert [headers.get("Range") for headers in registry.headers] == ["bytes=100-"]


@pytest.mark.parametrize(("arrived", "waits"), [(200_000, 0), (1000, 1)])
async def test_a_stream_that_breaks_off_is_waited_for_only_if_it_brought_little(
    node: Node, registry: Registry, arrived: int, waits: int
) -> None:
    content = LARGE * 10
    registry.put(content)
    registry.ranges = False
    streams, seen = 0, asyncio.Event()

    class Watched(Progress):
        def received(self, count: int) -> None:
            super().received(count)
            if streams and self.bytes >= before + arrived:
                seen.set()

    progress, before = Watched(), 0

    async def hook(request: web.BaseRequest) -> web.StreamResponse | None:
        nonlocal streams, before
        if "Range" in request.headers or streams:
            return None
        streams, before = 1, progress.bytes
        response = web.StreamResponse(headers={"Content-Length": str(len(content))})
        await response.prepare(request)
        await response.write(content[:arrived])
        await seen.wait()
        assert request.transport is not None
        request.transport.abort()
        return response

    registry.hook = hook
    session = node.client.session(parse_reference(name(registry)), None)
    blob = Descriptor(digest=digest(content), size=len(content))
    await node.client.fetch_blob(session, blob, progress)
    assert stored(node, content)
    assert len(node.clock.slept) == waits


async def test_a_lying_range_server_is_found_out(node: Node, registry: Registry) -> None:
    registry.content[digest(LARGE)] = bytes(SIZE)
    with pytest.raises(CorruptError, match="digest"):
        await fetch(node, registry, LARGE)
    assert list(node.files.parts()) == []
