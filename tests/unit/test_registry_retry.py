# SPDX-License-Identifier: Apache-2.0
"""What is tried again, which hosts are remembered, and what an error says."""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import re
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from aiohttp import web

from criagent.base.errors import NotFoundError, RegistryDeniedError, RegistryError
from criagent.cri.statuses import status_of
from criagent.image.documents.manifest import OCI_MANIFEST, Descriptor
from criagent.image.documents.reference import parse_reference
from criagent.image.registry import Progress
from criagent.image.registry.retry import retry_after_s
from tests.support.pulling import SMALL, Node, Registry, digest, hosts_toml, name, straight

LAYERS = [b"layer %d" % n for n in range(6)]
LIMIT = '{"errors":[{"code":"TOOMANYREQUESTS","message":"You have reached your pull rate limit."}]}'


@pytest.fixture
async def registry() -> AsyncIterator[Registry]:
    one = Registry()
    await one.start()
    one.put(b'{"schemaVersion":2}', OCI_MANIFEST, "1")
    yield one
    await one.stop()


@pytest.fixture
async def mirror() -> AsyncIterator[Registry]:
    one = Registry()
    await one.start()
    yield one
    await one.stop()


async def manifest(node: Node, registry: str) -> bytes:
    session = node.client.session(parse_reference(f"{registry}/a/b:1"), None)
    async with asyncio.timeout(20):
        return (await node.client.manifest(session, "1", Progress())).content


def failing(
    registry: Registry, times: int, status: int, part: str = "", **headers: str
) -> list[str]:
    """Make the first `times` requests whose path has `part` fail; the paths asked so far."""
    asked: list[str] = []

    async def hook(request: web.BaseRequest) -> web.StreamResponse | None:
        if part not in request.path:
            return None
        asked.append(request.path)
        if len(asked) > times:
            return None
        if status:
            fields = {key.replace("_", "-"): value for key, value in headers.items()}
            return web.Response(status=status, text=LIMIT, headers=fields)
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    registry.hook = hook
    return asked


@pytest.mark.parametrize("status", [0, 408, 429, 500, 502, 503, 504])
@pytest.mark.parametrize("part", ["/manifests/", "/blobs/", "/token"])
async def test_transient_failures_are_tried_again(
    node: Node, registry: Registry, status: int, part: str
) -> None:
    image_id = registry.image(SMALL)
    # aiohttp sends a GET once more by itself when the connection ends.
    asked = failing(registry, 1 if status else 2, status, part)
    failing_hook = registry.hook

    async def hook(request: web.BaseRequest) -> web.StreamResponse | None:
        if part == "/token" and "Authorization" not in request.headers:
            if request.path == "/token":
                return await failing_hook(request) or web.json_response({"token": "t"})
            challenge = {"WWW-Authenticate": f'Bearer realm="{registry.url}/token"'}
            return web.Response(status=401, headers=challenge)
        return await failing_hook(request)

    registry.hook = hook
    assert (await node.pull(name(registry))).id == image_id
    assert len(asked) >= 2
    assert len(node.clock.slept) == 1


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 501])
async def test_other_failures_are_final(node: Node, registry: Registry, status: int) -> None:
    asked = failing(registry, 9, status)
    with pytest.raises((RegistryError, NotFoundError)):
        await manifest(node, f"127.0.0.1:{registry.port}")
    assert len(asked) == 1
    assert node.clock.slept == []


async def test_attempts_are_limited_and_waits_grow(node: Node, registry: Registry) -> None:
    asked = failing(registry, 99, 503)
    with pytest.raises(RegistryError, match="503"):
        await manifest(node, f"127.0.0.1:{registry.port}")
    assert len(asked) == 5
    for wait, least in zip(node.clock.slept, (0.5, 1, 2, 4), strict=True):
        assert least <= wait <= 1.25 * least


@pytest.mark.parametrize("date", [False, True])
async def test_retry_after_is_honoured(node: Node, registry: Registry, *, date: bool) -> None:
    at = email.utils.formatdate(node.clock.now + 7, usegmt=True)
    asked = failing(registry, 1, 429, Retry_After=at if date else "7")
    assert await manifest(node, f"127.0.0.1:{registry.port}")
    assert len(asked) == 2
    assert node.clock.slept == [7]


@pytest.mark.parametrize("after", ["3600", "9" * 400, "Fri, 31 Dec 2100 23:59:59 GMT"])
async def test_a_server_that_wants_to_be_left_alone_is(
    node: Node, registry: Registry, after: str
) -> None:
    asked = failing(registry, 9, 429, Retry_After=after)
    with pytest.raises(RegistryError, match=r"rate limit.*retry after \d+ s"):
        await manifest(node, f"127.0.0.1:{registry.port}")
    assert len(asked) == 1
    assert node.clock.slept == []


async def test_all_waits_together_are_limited(node: Node, registry: Registry) -> None:
    failing(registry, 99, 429, Retry_After="25")
    with pytest.raises(RegistryError):
        await manifest(node, f"127.0.0.1:{registry.port}")
    assert node.clock.slept == [25, 25]


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0.0),
        (" 120 ", 120.0),
        ("Thu, 01 Jan 1970 00:00:30 GMT", 0.0),
        ("Thu, 01 Jan 1970 00:02:00 GMT", 20.0),
        ("-1", None),
        ("1.5", None),
        ("", None),
        ("soon", None),
        ("9" * 400, 999_999_999_999.0),
    ],
)
def test_forms_of_retry_after(value: str, seconds: float | None) -> None:
    assert retry_after_s(value, 100.0) == seconds


async def test_a_mirror_that_is_throttled_is_not_waited_for(
    node: Node, registry: Registry, mirror: Registry, tmp_path: Path
) -> None:
    hosts_toml(tmp_path, "real.test", f'server = "{registry.url}"\n[host."{mirror.url}"]\n')
    image_id = registry.image(SMALL)
    failing(mirror, 99, 429, Retry_After="20")
    assert (await node.pull("real.test/a/b:1")).id == image_id
    assert node.clock.slept == []


class Silent:
    """A host that takes connections and never answers a TLS greeting."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._socket.setblocking(False)
        self._taken: list[socket.socket] = []
        self.port = self._socket.getsockname()[1]

    @property
    def dialled(self) -> int:
        """How many connections were made. The kernel queues them, also those that were given up."""
        with contextlib.suppress(BlockingIOError):
            while True:
                self._taken.append(self._socket.accept()[0])
        return len(self._taken)

    def close(self) -> None:
        for one in (self._socket, *self._taken):
            one.close()


@pytest.fixture
def silent() -> Iterator[Silent]:
    one = Silent()
    yield one
    one.close()


def behind(tmp_path: Path, silent: Silent, registry: Registry) -> None:
    """A mirror that is dead in front of a registry that is not."""
    hosts_toml(
        tmp_path,
        "real.test",
        f'server = "{registry.url}"\n[host."https://127.0.0.1:{silent.port}"]\n'
        'dial_timeout = "50ms"\n',
    )


async def test_a_dead_mirror_costs_one_time_out_a_pull_and_a_minute(
    node: Node, registry: Registry, silent: Silent, tmp_path: Path
) -> None:
    behind(tmp_path, silent, registry)
    registry.image(*LAYERS)
    await node.pull("real.test/a/b:1")
    assert silent.dialled == 1
    node.clock.now += 59
    registry.image(b"another", tags=("2",))
    await node.pull("real.test/a/b:2")
    assert silent.dialled == 1
    node.clock.now += 2
    registry.image(b"a third", tags=("3",))
    await node.pull("real.test/a/b:3")
    assert silent.dialled == 2


async def test_all_who_want_a_dead_mirror_at_once_wait_for_one_time_out(
    node: Node, registry: Registry, silent: Silent, tmp_path: Path
) -> None:
    behind(tmp_path, silent, registry)
    registry.image(*LAYERS)
    session = node.client.session(parse_reference("real.test/a/b:1"), None)
    blobs = [Descriptor(digest=digest(layer), size=len(layer)) for layer in LAYERS]
    async with asyncio.timeout(20):
        await asyncio.gather(*(node.client.fetch_blob(session, blob, Progress()) for blob in blobs))
    assert silent.dialled == 1


async def test_a_long_pull_does_not_come_back_to_a_dead_mirror(
    node: Node, registry: Registry, silent: Silent, tmp_path: Path
) -> None:
    behind(tmp_path, silent, registry)
    registry.image(*LAYERS)

    async def hook(request: web.BaseRequest) -> web.StreamResponse | None:
        node.clock.now += 100
        return None

    registry.hook = hook
    await node.pull("real.test/a/b:1")
    assert silent.dialled == 1


async def test_a_dead_mirror_is_asked_last_for_what_the_registry_lacks(
    node: Node, registry: Registry, silent: Silent, tmp_path: Path
) -> None:
    behind(tmp_path, silent, registry)
    assert await manifest(node, "real.test")
    registry.content.clear()
    with pytest.raises(NotFoundError, match=rf"not found.*https://127.0.0.1:{silent.port}"):
        await manifest(node, "real.test")
    assert silent.dialled == 2


async def test_a_mirror_that_leads_to_a_dead_host_is_remembered_too(
    node: Node, registry: Registry, mirror: Registry, silent: Silent, tmp_path: Path
) -> None:
    hosts_toml(
        tmp_path,
        "real.test",
        f'server = "{registry.url}"\n[host."{mirror.url}"]\ndial_timeout = "50ms"\n',
    )
    registry.image(*LAYERS)

    async def away(request: web.BaseRequest) -> web.StreamResponse | None:
        location = {"Location": f"https://127.0.0.1:{silent.port}{request.path}"}
        return web.Response(status=302, headers=location)

    mirror.hook = away
    await node.pull("real.test/a/b:1")
    assert silent.dialled == 1
    assert len(mirror.asked) == 1
    mirror.asked.clear()
    mirror.hook = straight
    mirror.image(*LAYERS)
    await manifest(node, "real.test")
    assert mirror.asked  # who leads elsewhere is not dead for other pulls


async def test_a_mirror_that_comes_back_is_used(
    node: Node, registry: Registry, mirror: Registry, tmp_path: Path
) -> None:
    hosts_toml(tmp_path, "real.test", f'server = "{registry.url}"\n[host."{mirror.url}"]\n')
    mirror.put(b'{"schemaVersion":2}', OCI_MANIFEST, "1")
    await mirror.stop()
    assert await manifest(node, "real.test")
    again = Registry()
    again.put(b'{"schemaVersion":2}', OCI_MANIFEST, "1")
    hosts_toml(tmp_path, "real.test", f'server = "{registry.url}"\n[host."{mirror.url}"]\n')
    node.clock.now += 61
    await again.start(mirror.port)
    registry.asked.clear()
    assert await manifest(node, "real.test")
    assert registry.asked == []
    await again.stop()


async def test_a_lone_host_is_asked_each_time(node: Node, registry: Registry) -> None:
    """There is nobody else; what failed a moment ago may be mended."""
    port = registry.port
    await registry.stop()
    for _ in range(2):
        with pytest.raises(RegistryError, match=f"cannot connect to http://127.0.0.1:{port}: "):
            await manifest(node, f"127.0.0.1:{port}")
    again = Registry()
    again.put(b'{"schemaVersion":2}', OCI_MANIFEST, "1")
    await again.start(port)
    assert await manifest(node, f"127.0.0.1:{port}")
    await again.stop()


@pytest.mark.parametrize(
    ("status", "body", "text", "codes"),
    [
        (
            403,
            '{"errors":[{"code":"DENIED","message":"blocked by policy: CVE-2026-1"}]}',
            "403 Forbidden: DENIED: blocked by policy: CVE-2026-1",
            ("DENIED",),
        ),
        (
            400,
            '{"errors":[{"code":"A","message":"one"},{"code":"B","detail":{}}]}',
            "400 Bad Request: A: one; B",
            ("A", "B"),
        ),
        (400, '{"message":"repository is archived"}', "repository is archived", ()),
        (400, '{"error":"invalid_scope","error_description":"no"}', "invalid_scope: no", None),
        (400, '{"error":{"code":7,"message":"quota"}}', "7: quota", ("7",)),
        (400, "upstream says no\n\nreally\x1b[31m", "upstream says no really [31m", ()),
        (400, "<html><title>Blocked by proxy</title></html>", "Blocked by proxy", ()),
        (400, "<Error><Code>AccessDenied</Code></Error>", "AccessDenied", ("AccessDenied",)),
        (400, '{"errors":"x"}', "400 Bad Request", ()),
        (400, "[" * 100_000, "400 Bad Request", ()),
        (400, "", "400 Bad Request", ()),
        (400, "\x00\xff", "400 Bad Request", ()),
    ],
)
async def test_the_registrys_words_reach_the_user(
    node: Node,
    registry: Registry,
    status: int,
    body: str,
    text: str,
    codes: tuple[str, ...] | None,
) -> None:
    async def hook(request: web.BaseRequest) -> web.StreamResponse | None:
        return web.Response(status=status, text=body)

    registry.hook = hook
    with pytest.raises(RegistryError) as failure:
        await manifest(node, f"127.0.0.1:{registry.port}")
    assert text in str(failure.value)
    assert codes is None or failure.value.codes == codes
    assert failure.value.status == status
    assert failure.value.method == "GET"
    assert failure.value.url == f"{registry.url}/v2/a/b/manifests/1"
    assert str(failure.value).isprintable()


async def test_words_are_cut(node: Node, registry: Registry) -> None:
    async def hook(request: web.BaseRequest) -> web.StreamResponse | None:
        error = {"code": "C" * 10_000, "message": "m" * 100_000}
        return web.json_response({"errors": [error] * 30}, status=400, reason="R" * 3000)

    registry.hook = hook
    with pytest.raises(RegistryError) as failure:
        await manifest(node, f"127.0.0.1:{registry.port}")
    assert len(str(failure.value)) < 1200


async def test_words_of_a_host_that_a_redirect_names_are_not_repeated(
    node: Node, registry: Registry, mirror: Registry
) -> None:
    """An image must not read out what the node can reach."""

    async def away(request: web.BaseRequest) -> web.StreamResponse | None:
        return web.Response(status=302, headers={"Location": f"{mirror.url}/internal"})

    async def internal(request: web.BaseRequest) -> web.StreamResponse | None:
        return web.Response(status=403, text='{"message":"secret of the node\'s network"}')

    registry.hook, mirror.hook = away, internal
    with pytest.raises(RegistryDeniedError) as failure:
        await manifest(node, f"127.0.0.1:{registry.port}")
    assert "secret" not in str(failure.value)
    assert "403 Forbidden" in str(failure.value)


async def test_a_failure_has_the_same_text_each_time_and_no_memory_address(
    node: Node, registry: Registry
) -> None:
    """Events of a pod are counted by their text."""
    await registry.stop()
    texts = set()
    for _ in range(3):
        with pytest.raises(RegistryError) as failure:
            await manifest(node, f"127.0.0.1:{registry.port}")
        texts.add(status_of(failure.value, "PullImage", "").text)
    (text,) = texts
    where = f"127.0.0.1:{registry.port}"
    assert text == (
        f"RegistryUnavailable: {where}/a/b:1: cannot connect to http://{where}: Connection refused"
    )


async def test_a_name_that_does_not_resolve(node: Node) -> None:
    with pytest.raises(RegistryError) as failure:
        await manifest(node, "nohost.invalid")
    text = str(failure.value)
    assert text.startswith("nohost.invalid/a/b:1: cannot resolve nohost.invalid: ")
    assert not re.search(r"0x[0-9a-f]{6}", text)


async def test_a_server_without_tls_is_told_so(
    node: Node, registry: Registry, tmp_path: Path
) -> None:
    hosts_toml(tmp_path, "real.test", f'server = "https://127.0.0.1:{registry.port}"\n')
    with pytest.raises(RegistryError, match="plain HTTP"):
        await manifest(node, "real.test")


async def test_what_is_missing_is_named_with_every_host_that_was_tried(
    node: Node, registry: Registry, mirror: Registry, tmp_path: Path
) -> None:
    hosts_toml(
        tmp_path,
        "real.test",
        f'server = "{registry.url}"\n[host."{mirror.url}"]\n[host."http://127.0.0.1:1"]\n',
    )
    registry.content.clear()
    mirror.hook = straight
    with pytest.raises(NotFoundError) as failure:
        await manifest(node, "real.test")
    text = str(failure.value)
    assert text.startswith("real.test/a/b:1 not found: ")
    for host, why in (
        (mirror.url, "404"),
        ("http://127.0.0.1:1", "Connection refused"),
        (registry.url, "404"),
    ):
        assert re.search(rf"{host}: [^;]*{why}", text)


@pytest.mark.parametrize(
    ("mirrored", "own", "error"),
    [
        (404, 403, RegistryDeniedError),
        (403, 404, NotFoundError),
        (503, 404, NotFoundError),
        (404, 503, RegistryError),
        (404, 0, NotFoundError),
        (0, 404, NotFoundError),
        (0, 0, RegistryError),
    ],
)
async def test_the_registry_itself_says_what_kind_of_failure_it_is(
    node: Node,
    registry: Registry,
    mirror: Registry,
    tmp_path: Path,
    mirrored: int,
    own: int,
    error: type[Exception],
) -> None:
    hosts_toml(tmp_path, "real.test", f'server = "{registry.url}"\n[host."{mirror.url}"]\n')
    failing(mirror, 99, mirrored)
    failing(registry, 99, own)
    with pytest.raises(error) as failure:
        await manifest(node, "real.test")
    assert type(failure.value) is error
