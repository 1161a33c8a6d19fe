# SPDX-License-Identifier: Apache-2.0
"""A registry in this process and the parts of a node that pull from it, without unpacking."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from aiohttp import web

from criagent.image.blobs import BlobFiles
from criagent.image.claims import Claims
from criagent.image.content import ImageContent
from criagent.image.documents.manifest import OCI_MANIFEST
from criagent.image.documents.reference import parse_reference
from criagent.image.hosts.credentials import RegistryAuth
from criagent.image.hosts.hosts_toml import HostsDirectory
from criagent.image.hosts.proxy import ProxySettings
from criagent.image.hosts.registries import RegistryHosts
from criagent.image.policy.admission import Admission, Rules
from criagent.image.pull import Puller, Target
from criagent.image.registry import RegistryClient, Settings
from criagent.image.registry.retry import Clock
from criagent.model.image import Image, Layer, Snapshot
from criagent.store.blobs import BlobStore
from criagent.store.db import Database
from criagent.store.images import ImageStore
from criagent.store.snapshots import SnapshotStore

Json = dict[str, Any]
Hook = Callable[[web.BaseRequest], Awaitable[web.StreamResponse | None]]
RANGE = 4096
SMALL = b"small layer " * 20
LARGE = b"".join(hashlib.sha256(b"%d" % n).digest() for n in range(1000))  # eight ranges


def digest(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


def entry(content: bytes, **fields: Any) -> Json:
    return {"digest": digest(content), "size": len(content), **fields}


async def straight(_: web.BaseRequest) -> None:
    """No answer of its own: the content is served."""


def ranged(content: bytes, header: str) -> web.Response:
    """The answer of a good server to a Range."""
    first, _, last = header.removeprefix("bytes=").partition("-")
    start, stop = int(first), min(int(last) + 1 if last else len(content), len(content))
    span = f"bytes {start}-{stop - 1}/{len(content)}"
    return web.Response(status=206, body=content[start:stop], headers={"Content-Range": span})


class InstantClock(Clock):
    """Does not wait: `slept` has the waits, which move its time on."""

    def __init__(self) -> None:
        self.slept: list[float] = []
        self.now = 1_700_000_000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)


class Registry:
    """Serves `content` by digest and tag; `hook` may answer first. `asked` keeps the paths."""

    def __init__(self) -> None:
        self.content: dict[str, bytes] = {}
        self.kinds: dict[str, str] = {}
        self.hook: Hook = straight
        self.ranges = True
        self.asked: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.port = 0
        self._runner = web.ServerRunner(web.Server(self._answer), shutdown_timeout=0.1)

    async def start(self, port: int = 0) -> None:
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", port)
        await site.start()
        self.port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]

    async def stop(self) -> None:
        await self._runner.cleanup()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def put(self, content: bytes, kind: str = "", *tags: str) -> Json:
        for name in (digest(content), *tags):
            self.content[name], self.kinds[name] = content, kind
        return entry(content)

    def image(
        self, *layers: bytes, tags: Sequence[str] = ("1",), config: Json | None = None
    ) -> str:
        """Publish an image; its id."""
        document = {"rootfs": {"diff_ids": [digest(layer) for layer in layers]}, **(config or {})}
        one = self.put(json.dumps(document).encode())
        manifest = {"schemaVersion": 2, "config": one, "layers": [self.put(x) for x in layers]}
        self.put(json.dumps(manifest).encode(), OCI_MANIFEST, *tags)
        return str(one["digest"])

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        self.asked.append(request.path)
        self.headers.append(dict(request.headers))
        if (answer := await self.hook(request)) is not None:
            return answer
        name = request.path.rpartition("/")[2]
        if name not in self.content:
            return web.Response(status=404)
        content, header = self.content[name], request.headers.get("Range", "")
        kind = {"Content-Type": self.kinds[name] or "application/octet-stream"}
        if not header or not self.ranges:
            return web.Response(body=content, headers=kind)
        return ranged(content, header)

    def blobs(self, content: bytes) -> int:
        """How many requests there were for this blob."""
        return sum(path.endswith(digest(content)) for path in self.asked)


class TarPit:
    """A hook that never ends the answer for these blobs; `reached` says that one was asked for."""

    def __init__(self, *contents: bytes, sends: bytes = b"") -> None:
        self._ends = tuple(digest(content) for content in contents)
        self._sends = sends
        self.reached = asyncio.Event()

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse | None:
        if not request.path.endswith(self._ends):
            return None
        response = web.StreamResponse(headers={"Content-Length": "320"})
        await response.prepare(request)
        await response.write(self._sends)
        self.reached.set()
        await asyncio.Event().wait()
        return response


@contextlib.contextmanager
def served() -> Iterator[Registry]:
    """A registry in a thread of its own, for tests that are not asynchronous."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def started() -> Registry:
        one = Registry()
        await one.start()
        return one

    one = asyncio.run_coroutine_threadsafe(started(), loop).result(10)
    try:
        yield one
    finally:
        asyncio.run_coroutine_threadsafe(one.stop(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


class Unpacker:
    """Takes layers without writing them; knows what it was given."""

    def __init__(self, store: SnapshotStore) -> None:
        self._store = store
        self.failure: Exception | None = None
        self.hold = asyncio.Event()
        self.hold.set()
        self.entered = asyncio.Event()

    @contextlib.asynccontextmanager
    async def unpacked(
        self,
        layers: Sequence[Layer],
        fetch: Callable[[Layer], Awaitable[None]],
        received: Callable[[int], None],
    ) -> AsyncIterator[list[Snapshot]]:
        await asyncio.gather(*(fetch(layer) for layer in layers))
        self.entered.set()
        await self.hold.wait()
        if self.failure is not None:
            raise self.failure
        yield []

    def has(self, _: Layer) -> bool:
        """No layer is committed."""
        return False

    def lent(self, _: Layer) -> bool:
        """There is no additional store."""
        return False


class Node:
    """The parts of a node that pull, on a directory that outlives them."""

    def __init__(
        self,
        top: Path,
        *,
        timeout_s: float = 30.0,
        answer_timeout_s: float = 30.0,
        proxies: ProxySettings | None = None,
        hosts: RegistryHosts | None = None,
        rules: Rules = Rules(),  # noqa: B008 - frozen
    ) -> None:
        self.files = BlobFiles(top / "blobs")
        self.files.prepare()
        self._threads = ThreadPoolExecutor(4)
        self.clock = InstantClock()
        self.client = RegistryClient(
            settings=Settings(
                hosts=hosts or RegistryHosts(HostsDirectory([top / "certs.d"])),
                docker_config=top / "config.json",
                proxies=proxies or ProxySettings(),
                helper_timeout_s=5.0,
            ),
            files=self.files,
            fs=self._threads,
            range_bytes=RANGE,
            clock=self.clock,
            answer_timeout_s=answer_timeout_s,
        )
        self._db = Database.open(top / "state.db")
        snapshots, self.blob_rows = SnapshotStore(self._db), BlobStore(self._db)
        self.images = ImageStore(self._db, snapshots, self.blob_rows)
        self.unpacker = Unpacker(snapshots)
        nowhere: Any = None  # a pull looks at no snapshot itself
        content = ImageContent(
            store=self.images,
            blobs=self.blob_rows,
            files=self.files,
            drivers=nowhere,
            claims=Claims(),
            fs=self._threads,
            now_ns=lambda: 7,
        )
        self.admission = Admission(self.client, self._threads, rules)
        self.puller = Puller(
            client=self.client,
            content=content,
            unpackers={"": self.unpacker},  # type: ignore[dict-item]
            admission=self.admission,
            parallel_blobs=3,
            progress_timeout_s=timeout_s,
        )

    async def close(self) -> None:
        await self.puller.close()
        await self.client.close()
        self._db.close()
        self._threads.shutdown()

    async def pull(
        self, name: str, auth: RegistryAuth | None = None, *, namespace: str = ""
    ) -> Image:
        async with asyncio.timeout(20):
            target = Target(policy=await self.admission.policy_for(namespace))
            return await self.puller.pull(parse_reference(name).with_default_tag(), auth, target)


def hosts_toml(top: Path, registry: str, text: str) -> None:
    """Settings of `registry` for the node whose directory is `top`."""
    folder = top / "certs.d" / registry
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "hosts.toml").write_text(text)


def name(registry: Registry, rest: str = "a/b:1") -> str:
    return f"127.0.0.1:{registry.port}/{rest}"
