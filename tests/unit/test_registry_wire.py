# SPDX-License-Identifier: Apache-2.0
"""Headers, encodings and redirects on the wire, from servers that write bytes as they like."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import zlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from aiohttp import web

from criagent.base.errors import CorruptError, RegistryError
from criagent.image.documents.digest import parse_digest
from criagent.image.documents.manifest import OCI_MANIFEST, Descriptor
from criagent.image.documents.reference import parse_reference
from criagent.image.hosts.proxy import ProxySettings
from criagent.image.registry import Progress
from criagent.image.registry.wire import HeaderError, ordered
from tests.support.pulling import LARGE, SMALL, Hook, Node, Registry, digest, hosts_toml, name

try:
    from compression import zstd  # type: ignore[import-not-found]
except ImportError:
    from backports import zstd

MANIFEST = json.dumps({"schemaVersion": 2}).encode()


@contextlib.asynccontextmanager
async def serving(answer: Callable[[bytes], bytes], asked: list[bytes]) -> AsyncIterator[int]:
    """A server that answers each request's header with raw bytes and keeps the connection."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                request = await reader.readuntil(b"\r\n\r\n")
                asked.append(request)
                writer.write(answer(request))
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def manifest(node: Node, port: int) -> bytes:
    session = node.client.session(parse_reference(f"127.0.0.1:{port}/a/b:1"), None)
    async with asyncio.timeout(20):
        return (await node.client.manifest(session, "1", Progress())).content


LENGTH = b"Content-Length: %d\r\n" % len(MANIFEST)
HEADERS = {
    "a field of 100 kB": b"HTTP/1.1 200 OK\r\nCSP: " + b"x" * 100_000 + b"\r\n" + LENGTH,
    "2000 fields": b"HTTP/1.1 200 OK\r\n" + b"X-F: v\r\n" * 2000 + LENGTH,
    "a name with a blank": b"HTTP/1.1 200 OK\r\nX Bad Name: 1\r\n" + LENGTH,
    "a blank before the colon": b"HTTP/1.1 200 OK\r\nX-Odd : 1\r\n" + LENGTH,
    "a name of other letters": "HTTP/1.1 200 OK\r\nX-Ü(1): 1\r\n".encode() + LENGTH,
    "no name": b"HTTP/1.1 200 OK\r\n: 1\r\n" + LENGTH,
    "Latin-1 in a value": b"HTTP/1.1 200 OK\r\nX-Name: caf\xe9\r\n" + LENGTH,
    "a control character in a value": b"HTTP/1.1 200 OK\r\nX-Name: a\x00\x01b\r\n" + LENGTH,
    "equal lengths": b"HTTP/1.1 200 OK\r\n" + LENGTH * 3,
    "a folded field": b"HTTP/1.1 200 OK\r\nX-Long: one\r\n two\r\n\tthree\r\n" + LENGTH,
    "bare line feeds": b"HTTP/1.1 200 OK\nX: 1\n" + LENGTH.replace(b"\r", b""),
    "no reason": b"HTTP/1.1 200\r\n" + LENGTH,
    "HTTP/1.0": b"HTTP/1.0 200 OK\r\n" + LENGTH,
    "early hints": b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 200 OK\r\n" + LENGTH,
}


@pytest.mark.parametrize("header", HEADERS)
async def test_headers_that_go_takes(node: Node, header: str) -> None:
    end = b"\n" if header == "bare line feeds" else b"\r\n"
    asked: list[bytes] = []
    async with serving(lambda _: HEADERS[header] + end + MANIFEST, asked) as port:
        for _ in range(2):  # also on a connection that is used again
            assert await manifest(node, port) == MANIFEST


async def test_chunks_win_over_a_length(node: Node) -> None:
    body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(MANIFEST), MANIFEST)
    header = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with serving(lambda _: header + body, []) as port:
        for _ in range(2):
            assert await manifest(node, port) == MANIFEST


@pytest.mark.parametrize(
    "header",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * (1 << 20) + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: %s\r\n" % (b"x" * 1000) * 1100 + b"\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X:1\r\n" * 5000 + b"\r\n",
        b"nonsense\r\n\r\n",
    ],
)
async def test_headers_that_are_refused(node: Node, header: bytes) -> None:
    async with serving(lambda _: header, []) as port:
        with pytest.raises(RegistryError, match="malformed answer"):
            await manifest(node, port)


async def test_an_endless_header_is_cut(node: Node) -> None:
    sent = 0

    async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n")
        with contextlib.suppress(OSError):
            while True:
                writer.write(b"X: " + b"x" * 10_000 + b"\r\n")
                await writer.drain()
                sent += 10_000
        writer.close()

    server = await asyncio.start_server(pour, "127.0.0.1", 0)
    async with server:
        with pytest.raises(RegistryError, match="larger than"):
            await manifest(node, server.sockets[0].getsockname()[1])
    assert sent < 64 << 20


def test_the_lines_of_a_header_are_limited() -> None:
    with pytest.raises(HeaderError):
        ordered(b"HTTP/1.1 200 OK\r\n" + b"a:b\r\n" * 5000)


async def test_no_cookie_is_kept(node: Node) -> None:
    """Whoever pulls next would pull with the rights of the one before."""
    header = b"HTTP/1.1 200 OK\r\nSet-Cookie: session=alice; Path=/\r\n" + LENGTH + b"\r\n"
    asked: list[bytes] = []
    async with serving(lambda _: header + MANIFEST, asked) as port:
        session = node.client.session(parse_reference(f"localhost:{port}/a/b:1"), None)
        for _ in range(2):  # cookies are for names, not for addresses
            await node.client.manifest(session, "1", Progress())
    assert len(asked) == 2
    assert not any(b"cookie" in request.lower() for request in asked)


async def test_a_redirect_is_asked_as_it_is_written(node: Node) -> None:
    signed = b"/s/a%2Fb/%7Ed/UPPER%2f?X-Sig=a%2Bb%3D&Cred=k%2F1&e=1:2&x=[1]|2&q='a'!*()+b"
    asked: list[bytes] = []

    def answer(request: bytes) -> bytes:
        if b"/manifests/" in request:
            return b"HTTP/1.1 307 X\r\nContent-Length: 0\r\nLocation: %s\r\n\r\n" % signed
        return b"HTTP/1.1 200 OK\r\n" + LENGTH + b"\r\n" + MANIFEST

    async with serving(answer, asked) as port:
        assert await manifest(node, port) == MANIFEST
    assert asked[1].startswith(b"GET " + signed + b" HTTP/1.1\r\n")


async def test_ten_redirects_are_followed_and_no_more(node: Node, registry: Registry) -> None:
    hops = 10

    async def hook(request: web.BaseRequest) -> web.StreamResponse | None:
        hop = int(request.query.get("hop", 0))
        if hop == hops:
            return web.Response(body=MANIFEST)
        return web.Response(status=302, headers={"Location": f"?hop={hop + 1}"})

    registry.hook = hook
    assert await manifest(node, registry.port) == MANIFEST
    hops = 11
    with pytest.raises(RegistryError, match="more than 10 times"):
        await manifest(node, registry.port)


def bare_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


ENCODINGS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "GZIP": lambda data: gzip.compress(data[:10]) + gzip.compress(data[10:]),
    "deflate": zlib.compress,
    "deflate ": bare_deflate,
    "zstd": zstd.compress,
    "identity": bytes,
    "gzip, zstd": lambda data: zstd.compress(gzip.compress(data)),
}


def encoding(coding: str, registry: Registry) -> Hook:
    """A proxy in front of `registry` that encodes every answer, asked or not."""

    async def hook(request: web.BaseRequest) -> web.StreamResponse | None:
        assert request.headers["Accept-Encoding"] == "identity"
        content = registry.content[request.path.rpartition("/")[2]]
        body = ENCODINGS[coding](content)
        headers = {"Content-Encoding": coding, "Content-Type": OCI_MANIFEST}
        if "/blobs/" in request.path:
            headers["Content-Type"] = "application/octet-stream"
        return web.Response(body=body, headers=headers)

    return hook


@pytest.mark.parametrize("coding", ENCODINGS)
async def test_an_encoding_that_comes_all_the_same_is_undone(
    node: Node, registry: Registry, coding: str
) -> None:
    """Of manifests, configurations and layers, also of those that are asked for in ranges."""
    image_id = registry.image(SMALL, LARGE)
    registry.hook = encoding(coding, registry)
    assert (await node.pull(name(registry))).id == image_id
    for content in (SMALL, LARGE):
        assert node.files.read(parse_digest(digest(content)), 1 << 20) == content


@pytest.mark.parametrize("coding", ["br", "gzip, br", "gzip, gzip, gzip, gzip"])
async def test_an_encoding_that_nobody_asked_for_is_refused_in_words(
    node: Node, registry: Registry, coding: str
) -> None:
    async def hook(request: web.BaseRequest) -> web.StreamResponse | None:
        return web.Response(body=MANIFEST, headers={"Content-Encoding": coding})

    registry.hook = hook
    with pytest.raises(RegistryError, match=r"encoding .* was not requested"):
        await manifest(node, registry.port)


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        ("gzip", gzip.compress(b" " * (64 << 20))),
        ("zstd", zstd.compress(b" " * (64 << 20))),
        ("gzip", gzip.compress(MANIFEST)[:-4]),
        ("gzip", MANIFEST),
        ("zstd", MANIFEST),
        ("deflate", b"\xff" * 30),
    ],
    ids=["gzip bomb", "zstd bomb", "cut", "no gzip", "no zstd", "deflate"],
)
async def test_bombs_and_damaged_encodings_are_refused(
    node: Node, registry: Registry, coding: str, body: bytes
) -> None:
    async def hook(request: web.BaseRequest) -> web.StreamResponse | None:
        return web.Response(body=body, headers={"Content-Encoding": coding})

    registry.hook = hook
    with pytest.raises(CorruptError, match=r"larger than|encoding"):
        await manifest(node, registry.port)


async def test_a_bomb_as_a_blob_does_not_fill_the_disk(node: Node, registry: Registry) -> None:
    async def hook(request: web.BaseRequest) -> web.StreamResponse | None:
        body = gzip.compress(bytes(64 << 20))
        return web.Response(body=body, headers={"Content-Encoding": "gzip"})

    registry.hook = hook
    session = node.client.session(parse_reference(name(registry)), None)
    with pytest.raises(CorruptError, match="sent more than"):
        await node.client.fetch_blob(
            session, Descriptor(digest=digest(SMALL), size=len(SMALL)), Progress()
        )
    assert list(node.files.parts()) == []


async def test_a_blob_that_is_labelled_as_encoded_by_its_own_compression(
    node: Node, registry: Registry
) -> None:
    """Stores of files give a .gz Content-Encoding: gzip; undone, its digest would be wrong."""
    layer = gzip.compress(SMALL)
    registry.put(layer)

    async def hook(request: web.BaseRequest) -> web.StreamResponse | None:
        return web.Response(body=layer, headers={"Content-Encoding": "gzip"})

    registry.hook = hook
    session = node.client.session(parse_reference(name(registry)), None)
    blob = Descriptor(digest=digest(layer), size=len(layer))
    await node.client.fetch_blob(session, blob, Progress())
    assert node.files.read(parse_digest(digest(layer)), 1 << 20) == layer


async def test_connections_are_limited_for_each_registry_and_not_over_all(node: Node) -> None:
    """A registry that answers slowly takes its own connections, and nobody else's."""
    held = asyncio.Event()
    arrived = asyncio.Semaphore(0)

    async def slow(request: web.BaseRequest) -> web.StreamResponse | None:
        arrived.release()
        await held.wait()
        return web.Response(status=404)

    pits = [Registry() for _ in range(3)]
    for pit in pits:
        pit.hook = slow
        await pit.start()
    waiting = [asyncio.create_task(manifest(node, pit.port)) for pit in pits for _ in range(100)]
    for _ in range(3 * 64):
        await arrived.acquire()
    good = Registry()
    await good.start()
    good.put(MANIFEST, OCI_MANIFEST, "1")
    assert await manifest(node, good.port) == MANIFEST
    assert [len(pit.asked) for pit in pits] == [64, 64, 64]
    held.set()
    await asyncio.gather(*waiting, return_exceptions=True)
    for one in (*pits, good):
        await one.stop()


async def test_through_a_proxy(registry: Registry, tmp_path: Path) -> None:
    """Its answers have headers too, and a signed URL stays as it is written."""
    signed = "http://real.test/s/a%2Fb?X-Sig=a%2Bb%3D"
    asked: list[bytes] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            request = await reader.readuntil(b"\r\n\r\n")
            asked.append(request)
            if request.startswith(b"CONNECT"):
                writer.write(b"HTTP/1.1 200 OK\r\nX Odd Name: 1\r\n\r\n")
                asked.append(await reader.readexactly(3))
            elif b"/manifests/" in request:
                head = f"HTTP/1.1 307 X\r\nContent-Length: 0\r\nLocation: {signed}\r\n\r\n"
                writer.write(head.encode())
            else:
                writer.write(b"HTTP/1.1 200 OK\r\n" + LENGTH + b"\r\n" + MANIFEST)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    proxy = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    node = Node(tmp_path, proxies=ProxySettings(http=proxy, https=proxy))
    hosts_toml(tmp_path, "real.test", 'server = "http://real.test"\n')
    hosts_toml(tmp_path, "other.test", 'server = "https://other.test"\n')
    async with server:
        session = node.client.session(parse_reference("real.test/a/b:1"), None)
        assert (await node.client.manifest(session, "1", Progress())).content == MANIFEST
        session = node.client.session(parse_reference("other.test/a/b:1"), None)
        with pytest.raises(RegistryError, match=r"https://other\.test"):
            await node.client.manifest(session, "1", Progress())
    await node.close()
    assert asked[1].startswith(f"GET {signed} HTTP/1.1\r\n".encode())
    assert asked[2].startswith(b"CONNECT other.test:443 HTTP/1.1\r\n")
    assert asked[3] == b"\x16\x03\x01"  # a TLS greeting
