# SPDX-License-Identifier: Apache-2.0
"""The registry client against servers that misbehave. Each runs in this process on loopback."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from aiohttp import web

from criagent.base.errors import CorruptError, NotFoundError, RegistryDeniedError, RegistryError
from criagent.image.blobs import BlobFiles
from criagent.image.documents.manifest import Descriptor
from criagent.image.documents.reference import parse_reference
from criagent.image.hosts.credentials import RegistryAuth
from criagent.image.hosts.hosts_toml import HostsDirectory
from criagent.image.hosts.proxy import ProxySettings
from criagent.image.hosts.registries import RegistryHosts
from criagent.image.registry import Progress, RegistryClient, Settings
from tests.support.pulling import InstantClock

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
CONTENT = b"blob content " * 1000
DIGEST = "sha256:" + hashlib.sha256(CONTENT).hexdigest()
BLOB = Descriptor(digest=DIGEST, size=len(CONTENT))


class Server:
    """A registry whose every answer is `handler`'s; it keeps what was asked."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, dict[str, str]]] = []
        self.port = 0
        self.handler: Handler = self._missing
        self._runner: web.ServerRunner | None = None

    async def start(self) -> None:
        self._runner = web.ServerRunner(web.Server(self._answer))
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.shutdown()
            await self._runner.cleanup()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        self.seen.append((request.method, str(request.rel_url), dict(request.headers)))
        return await self.handler(request)  # type: ignore[arg-type]

    @staticmethod
    async def _missing(request: web.Request) -> web.StreamResponse:
        return web.Response(status=404)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    one = Server()
    await one.start()
    yield one
    await one.stop()


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[RegistryClient]:
    files = BlobFiles(tmp_path / "blobs")
    files.prepare()
    threads = ThreadPoolExecutor(2)
    made = RegistryClient(
        settings=Settings(
            hosts=RegistryHosts(HostsDirectory([tmp_path / "certs.d"])),
            docker_config=tmp_path / "config.json",
            proxies=ProxySettings(),
        ),
        files=files,
        fs=threads,
        range_bytes=4096,
        clock=InstantClock(),
    )
    yield made
    await made.close()
    threads.shutdown()


async def manifest(client: RegistryClient, server: Server, name: str = "a/b:tag") -> bytes:
    reference = parse_reference(f"127.0.0.1:{server.port}/{name}")
    session = client.session(reference, None)
    wanted = str(reference.digest) if reference.digest else reference.tag or ""
    return (await client.manifest(session, wanted, Progress())).content


async def fetch(
    client: RegistryClient,
    server: Server,
    blob: Descriptor = BLOB,
    auth: RegistryAuth | None = None,
) -> None:
    session = client.session(parse_reference(f"127.0.0.1:{server.port}/a/b:tag"), auth)
    async with asyncio.timeout(10):
        await client.fetch_blob(session, blob, Progress())


def answering(*responses: web.Response | Exception) -> Handler:
    """Each response once, the last one for ever."""
    left = list(responses)

    async def handler(request: web.Request) -> web.StreamResponse:
        response = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(response, Exception):
            raise response
        return web.Response(status=response.status, body=response.body, headers=response.headers)

    return handler


async def test_a_blob_arrives_verified_and_is_not_asked_for_again(
    client: RegistryClient, server: Server, tmp_path: Path
) -> None:
    server.handler = answering(web.Response(body=CONTENT))
    await fetch(client, server)
    await fetch(client, server)
    assert len([s for s in server.seen if "blobs" in s[1]]) >= 1
    asked = len(server.seen)
    await fetch(client, server)
    assert len(server.seen) == asked
    path = tmp_path / "blobs" / DIGEST.replace(":", "/")
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"x" * len(CONTENT), CorruptError),
        (CONTENT + b"more", CorruptError),
        (CONTENT[:-1], RegistryError),
        (b"", RegistryError),
    ],
)
async def test_wrong_content_is_refused_and_nothing_is_stored(
    client: RegistryClient, server: Server, tmp_path: Path, body: bytes, error: type[Exception]
) -> None:
    server.handler = answering(web.Response(body=body))
    with pytest.raises(error):
        await fetch(client, server)
    assert not (tmp_path / "blobs" / DIGEST.replace(":", "/")).exists()


async def test_a_broken_download_goes_on_where_it_was(
    client: RegistryClient, server: Server
) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        start = int(request.headers.get("Range", "bytes=0-").split("=")[1].split("-")[0])
        stop = len(CONTENT)
        text = request.headers.get("Range", "").rpartition("-")[2]
        if text:
            stop = int(text) + 1
        response = web.StreamResponse(
            status=206 if "Range" in request.headers else 200,
            headers={
                "Content-Length": str(stop - start),
                "Content-Range": f"bytes {start}-{stop - 1}/{len(CONTENT)}",
            },
        )
        await response.prepare(request)
        await response.write(CONTENT[start : min(start + 3000, stop)])
        if start + 3000 < stop and request.transport is not None:
            request.transport.abort()
        return response

    server.handler = handler
    await fetch(client, server)


async def test_not_found_and_denied_are_told_apart(client: RegistryClient, server: Server) -> None:
    with pytest.raises(NotFoundError):
        await manifest(client, server)
    server.handler = answering(web.Response(status=403))
    with pytest.raises(RegistryDeniedError):
        await manifest(client, server)
    server.handler = answering(web.Response(status=500))
    with pytest.raises(RegistryError, match="500"):
        await manifest(client, server)


async def test_an_endless_401_ends(client: RegistryClient, server: Server) -> None:
    challenge = {"WWW-Authenticate": f'Bearer realm="{server.url}/token",service="s"'}

    async def handler(request: web.Request) -> web.StreamResponse:
        if request.path == "/token":
            return web.json_response({"token": "useless"})
        return web.Response(status=401, headers=challenge)

    server.handler = handler
    with pytest.raises(RegistryDeniedError):
        await manifest(client, server)
    assert len(server.seen) < 10


async def test_a_token_is_fetched_and_used(client: RegistryClient, server: Server) -> None:
    body = b'{"schemaVersion":2}'

    async def handler(request: web.Request) -> web.StreamResponse:
        if request.path == "/token":
            assert request.query["scope"] == "repository:a/b:pull"
            return web.json_response({"access_token": "good"})
        if request.headers.get("Authorization") == "Bearer good":
            return web.Response(body=body)
        challenge = f'Bearer realm="{server.url}/token",service="s",scope="repository:a/b:pull"'
        return web.Response(status=401, headers={"WWW-Authenticate": challenge})

    server.handler = handler
    assert await manifest(client, server) == body


async def test_basic_credentials_are_sent_only_when_asked_for(
    client: RegistryClient, server: Server
) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        if request.headers.get("Authorization") == "Basic dTpw":
            return web.Response(body=CONTENT)
        return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="x"'})

    server.handler = handler
    await fetch(client, server, auth=RegistryAuth(username="u", password="p"))
    assert "Authorization" not in server.seen[0][2]


async def test_credentials_do_not_follow_a_redirect_to_another_host(
    client: RegistryClient, server: Server
) -> None:
    other = Server()
    await other.start()
    other.handler = answering(web.Response(body=CONTENT))

    async def handler(request: web.Request) -> web.StreamResponse:
        if "Authorization" not in request.headers:
            return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="x"'})
        return web.Response(status=307, headers={"Location": f"{other.url}/elsewhere"})

    server.handler = handler
    try:
        await fetch(client, server, auth=RegistryAuth(username="u", password="p"))
        assert other.seen
        assert all("Authorization" not in headers for _, _, headers in other.seen)
    finally:
        await other.stop()


@pytest.mark.parametrize("location", ["{url}/v2/a/b/manifests/tag", "ftp://x/", "file:///etc"])
async def test_bad_redirects_end(client: RegistryClient, server: Server, location: str) -> None:
    target = location.format(url=server.url)
    server.handler = answering(web.Response(status=302, headers={"Location": target}))
    with pytest.raises(RegistryError, match="redirects"):
        await manifest(client, server)
    assert len(server.seen) < 12


async def test_a_manifest_of_another_digest_is_refused(
    client: RegistryClient, server: Server
) -> None:
    server.handler = answering(web.Response(body=b"{}"))
    with pytest.raises(CorruptError, match="digest"):
        await manifest(client, server, "a/b@sha256:" + "0" * 64)


async def test_an_endless_manifest_is_cut(client: RegistryClient, server: Server) -> None:
    server.handler = answering(web.Response(body=b" " * (9 << 20)))
    with pytest.raises(CorruptError, match="larger"):
        await manifest(client, server)


async def test_a_server_that_resets_gives_a_registry_error(
    client: RegistryClient, server: Server
) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        if request.transport is not None:
            request.transport.abort()
        return web.Response()

    server.handler = handler
    with pytest.raises(RegistryError):
        await manifest(client, server)


async def test_a_token_realm_may_not_leave_https(client: RegistryClient, server: Server) -> None:
    challenge = {"WWW-Authenticate": 'Bearer realm="file:///etc/passwd",service="s"'}
    server.handler = answering(web.Response(status=401, headers=challenge))
    with pytest.raises(RegistryError, match="realm"):
        await manifest(client, server)


async def test_mirrors_come_first_and_the_registry_itself_last(
    client: RegistryClient, server: Server, tmp_path: Path
) -> None:
    folder = tmp_path / "certs.d" / "example.test"
    folder.mkdir(parents=True)
    (folder / "hosts.toml").write_text(
        f'server = "{server.url}"\n[host."http://127.0.0.1:1"]\n'
        'capabilities = ["pull", "resolve"]\n'
    )
    server.handler = answering(web.Response(body=json.dumps({"schemaVersion": 2}).encode()))
    session = client.session(parse_reference("example.test/x:1"), None)
    assert (await client.manifest(session, "1", Progress())).content
