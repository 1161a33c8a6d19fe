"""The registry client: resolve references and fetch blobs (OCI distribution specification).

Servers are tried in the order of hosts.toml. Redirects are followed by hand: five at most, never
from https to http, and credentials stay with the host they are for. Bodies have limits.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode, urljoin, urlsplit, urlunsplit

import structlog

from criagent.aio import KeyedLocks, run_in
from criagent.errors import (
    CorruptError,
    NotFoundError,
    RegistryDeniedError,
    RegistryError,
)
from criagent.image.auth import Credentials, RegistryAuth, credentials_for
from criagent.image.blobs import BlobFiles
from criagent.image.digest import Digest, digest_of, parse_digest
from criagent.image.download import Downloader, Source
from criagent.image.hosts import Host, HostsDirectory
from criagent.image.manifest import ACCEPTED, MAX_DOCUMENT, Descriptor
from criagent.image.proxy import ProxySettings
from criagent.image.reference import Reference

if TYPE_CHECKING:
    import aiohttp

_MAX_REDIRECTS = 5
_MAX_TOKEN = 1 << 20
_CHUNK = 1 << 20
_CHALLENGE = re.compile(r'([a-zA-Z]+)="([^"]*)"')

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class Progress:
    """Watches one pull: `moved` counts bytes, `stalled_s` is the time since the last one.

    The clock runs only while an answer of a server is awaited: a pull may also wait for another
    one that brings the same layer, for a worker, or for the disk.
    """

    def __init__(self) -> None:
        self.bytes = 0
        self._last = time.monotonic()
        self._receiving = 0

    @contextlib.contextmanager
    def receiving(self) -> Iterator[None]:
        """An exchange with a server."""
        if not self._receiving:
            self._last = time.monotonic()
        self._receiving += 1
        try:
            yield
        finally:
            self._receiving -= 1

    def moved(self, count: int) -> None:
        """`count` bytes were received or unpacked."""
        self.bytes += count
        self._last = time.monotonic()

    @property
    def stalled_s(self) -> float:
        """Seconds since the last byte that a server sent, 0 while none is asked."""
        return time.monotonic() - self._last if self._receiving else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """A manifest or index as the registry served it, its digest checked."""

    digest: Digest
    media_type: str
    content: bytes


@dataclass(slots=True, kw_only=True)
class Session:
    """One pull's view of a repository: credentials and the tokens that were handed out."""

    reference: Reference
    credentials: dict[str, Credentials | None]  # by the host's URL
    hosts: list[Host]
    tokens: dict[str, str] = field(default_factory=dict)


class RegistryClient:
    """Speaks to registries; one connection pool per TLS setting, closed by `close`."""

    def __init__(
        self,
        *,
        hosts: HostsDirectory,
        docker_config: Path,
        proxies: ProxySettings,
        files: BlobFiles,
        fs: Executor,
        range_bytes: int,
    ) -> None:
        self._hosts = hosts
        self._docker_config = docker_config
        self._proxies = proxies
        self._files = files
        self._fs = fs
        self._downloader = Downloader(files, fs, range_bytes=range_bytes)
        self._parts = KeyedLocks()
        self._client: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Close all connections."""
        if self._client is not None:
            await self._client.close()

    def session(self, reference: Reference, auth: RegistryAuth | None) -> Session:
        """Begin a pull. Raises InvalidRequestError for a bad hosts.toml or `auth`."""
        hosts = self._hosts.hosts(reference.registry)
        credentials = {
            host.url: credentials_for(
                host.authority if host.mirror else reference.registry,
                auth,
                self._docker_config,
                mirror=host.mirror,
            )
            for host in hosts
        }
        return Session(reference=reference, credentials=credentials, hosts=hosts)

    async def manifest(self, session: Session, wanted: str, progress: Progress) -> Resolved:
        """The manifest or index `wanted` (a tag or digest).

        Raises NotFoundError, RegistryDeniedError, RegistryError, CorruptError.
        """

        async def ask(host: Host) -> Resolved:
            path = f"{session.reference.repository}/manifests/{wanted}"
            headers = {"Accept": ", ".join(ACCEPTED)}
            async with self._watched(progress, session, host, path, headers) as response:
                content = await _bounded(response, MAX_DOCUMENT)
                kind = response.headers.get("Content-Type", "")
            digest = digest_of(content)
            if ":" in wanted:
                expected = parse_digest(wanted)
                hasher = expected.hasher()
                hasher.update(content)
                if hasher.hexdigest() != expected.hex:
                    raise CorruptError(f"manifest {wanted} from {host.url} has digest {digest}")
                digest = expected
            return Resolved(digest=digest, media_type=kind, content=content)

        need = "pull" if ":" in wanted else "resolve"
        resolved: Resolved = await self._first(session, need, ask)
        return resolved

    async def fetch_blob(self, session: Session, blob: Descriptor, progress: Progress) -> None:
        """Fetch a blob into the blob files, verified and durable; nothing to do when it is there.

        Resumes a part that an earlier try left. Raises what `manifest` raises, ExhaustedError.
        """

        async def ask(host: Host) -> None:
            path = f"{session.reference.repository}/blobs/{blob.digest}"
            source = Source(
                where=host.url,
                get=lambda headers: self._watched(progress, session, host, path, headers),
                chunks=lambda response: _chunks(response, host.url),
                moved=progress.moved,
            )
            await self._downloader.download(blob, source)

        async with self._parts.hold(blob.digest):  # two pulls may want the same blob
            if not await run_in(self._fs, self._files.has, blob.parsed):
                await self._first(session, "pull", ask)

    async def _first(self, session: Session, need: str, ask: Callable[[Host], Any]) -> Any:
        """The first server's answer; the last server's error when none has one."""
        hosts = [host for host in session.hosts if need in host.capabilities]
        failure: Exception | None = None
        for host in hosts:
            try:
                return await ask(host)
            except (RegistryError, NotFoundError, CorruptError) as exc:
                # A mirror's 404 says less than why the registry itself could not be asked.
                if failure is None or not isinstance(exc, RegistryError):
                    failure = exc
                log.info("registry_host_failed", host=host.url, error=str(exc))
        raise failure or RegistryError(
            f"no host of {session.reference.registry} has the capability {need}"
        )

    @contextlib.asynccontextmanager
    async def _watched(
        self,
        progress: Progress,
        session: Session,
        host: Host,
        path: str,
        headers: dict[str, str],
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        with progress.receiving():
            async with self._get(session, host, path, headers) as response:
                yield response

    @contextlib.asynccontextmanager
    async def _get(
        self, session: Session, host: Host, path: str, headers: dict[str, str]
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        url = f"{host.url}{host.api}/{path}"
        if host.mirror:
            url += "?" + urlencode({"ns": session.reference.registry})
        async with contextlib.AsyncExitStack() as stack:
            response = await self._authorised(stack, session, host, url, headers)
            await _refuse(response, "GET", url)
            yield response

    async def _authorised(
        self,
        stack: contextlib.AsyncExitStack,
        session: Session,
        host: Host,
        url: str,
        headers: dict[str, str],
    ) -> aiohttp.ClientResponse:
        sent = {**dict(host.header), **headers}
        if token := session.tokens.get(host.url):
            sent["Authorization"] = token
        response = await self._follow(stack, host, url, sent)
        if response.status != 401:
            return response
        session.tokens[host.url] = await self._authorise(session, host, response)
        sent["Authorization"] = session.tokens[host.url]
        return await self._follow(stack, host, url, sent)

    async def _follow(
        self, stack: contextlib.AsyncExitStack, host: Host, url: str, headers: dict[str, str]
    ) -> aiohttp.ClientResponse:
        for _ in range(_MAX_REDIRECTS + 1):
            response = await self._send(stack, host, "GET", url, headers)
            location = response.headers.get("Location")
            if response.status not in {301, 302, 303, 307, 308} or not location:
                return response
            try:
                target = urljoin(url, location)
                old, new = urlsplit(url), urlsplit(target)
            except ValueError as exc:
                raise RegistryError(
                    f"{redacted(url)} redirects to a malformed address: {exc}",
                    method="GET",
                    url=redacted(url),
                ) from None
            if new.scheme not in {"http", "https"} or (old.scheme, new.scheme) == ("https", "http"):
                raise RegistryError(
                    f"{redacted(url)} redirects from https to {new.scheme}; refused",
                    method="GET",
                    url=redacted(url),
                )
            if (old.scheme, old.netloc) != (new.scheme, new.netloc):
                kept = {"Range", "Accept"}
                headers = {k: v for k, v in headers.items() if k in kept}
            url = target
        raise RegistryError(
            f"{redacted(url)} redirects more than {_MAX_REDIRECTS} times",
            method="GET",
            url=redacted(url),
        )

    async def _send(
        self,
        stack: contextlib.AsyncExitStack,
        host: Host,
        method: str,
        url: str,
        headers: dict[str, str],
        data: dict[str, str] | None = None,
    ) -> aiohttp.ClientResponse:
        import aiohttp

        if self._client is None:
            self._client = aiohttp.ClientSession(
                auto_decompress=False,
                read_bufsize=_CHUNK,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=30),
                headers={"User-Agent": "criagent"},
            )
        try:
            tls = host.tls()
            return await stack.enter_async_context(
                self._client.request(
                    method,
                    url,
                    headers=headers,
                    data=data,
                    ssl=tls if tls is not None else True,
                    proxy=self._proxies.for_url(url),
                    allow_redirects=False,
                )
            )
        except (aiohttp.ClientError, OSError, ValueError) as exc:  # OSError: of TLS files too
            raise RegistryError(
                f"{method} {redacted(url)}: {str(exc) or type(exc).__name__}",
                method=method,
                url=redacted(url),
            ) from exc

    async def _authorise(
        self, session: Session, host: Host, response: aiohttp.ClientResponse
    ) -> str:
        """The Authorization header that the challenge of a 401 asks for."""
        credentials = session.credentials.get(host.url)
        for challenge in response.headers.getall("WWW-Authenticate", []):
            scheme, _, rest = challenge.partition(" ")
            if scheme.lower() == "bearer":
                if credentials is not None and credentials.registry_token:
                    return f"Bearer {credentials.registry_token}"
                return await self._token(session, host, dict(_CHALLENGE.findall(rest)))
            if scheme.lower() == "basic" and credentials is not None:
                return credentials.basic
        raise RegistryDeniedError(
            f"{host.url} wants credentials for {session.reference.name}; give imagePullSecrets",
            method="GET",
            url=host.url,
            status=401,
        )

    async def _token(self, session: Session, host: Host, challenge: dict[str, str]) -> str:
        realm = challenge.get("realm", "")
        try:
            old, new = urlsplit(host.url), urlsplit(realm)
        except ValueError:
            raise RegistryError(f"{host.url} names the token realm {realm[:200]!r}") from None
        if new.scheme not in {"http", "https"} or (old.scheme, new.scheme) == ("https", "http"):
            raise RegistryError(f"{host.url} names the token realm {realm[:200]!r}; refused")
        scope = challenge.get("scope") or f"repository:{session.reference.repository}:pull"
        query = {"service": challenge.get("service", ""), "scope": scope}
        credentials = session.credentials.get(host.url)
        async with contextlib.AsyncExitStack() as stack:
            if credentials is not None and credentials.identity_token:
                form = {
                    **query,
                    "grant_type": "refresh_token",
                    "refresh_token": credentials.identity_token,
                    "client_id": "criagent",
                }
                response = await self._send(stack, host, "POST", realm, {}, form)
            else:
                basic = credentials is not None and credentials.username
                headers = {"Authorization": credentials.basic} if credentials and basic else {}
                separator = "&" if new.query else "?"
                url = f"{realm}{separator}{urlencode(query)}"
                response = await self._send(stack, host, "GET", url, headers)
            await _refuse(response, "GET", realm)
            return _bearer(await _bounded(response, _MAX_TOKEN), realm)


def redacted(url: str) -> str:
    """`url` without user, password and query."""
    split = urlsplit(url)
    return urlunsplit((split.scheme, split.netloc.rpartition("@")[2], split.path, "", ""))


def _bearer(content: bytes, realm: str) -> str:
    try:
        answer = json.loads(content)
        token = answer.get("token") or answer["access_token"]
    except (ValueError, KeyError, AttributeError, RecursionError):
        raise RegistryError(f"{redacted(realm)} answered no token") from None
    return f"Bearer {token}"


async def _refuse(response: aiohttp.ClientResponse, method: str, url: str) -> None:
    """Raise the error of an unsuccessful answer."""
    if response.status < 300:
        return
    where = f"{method} {redacted(url)}"
    if response.status == 404:
        raise NotFoundError(f"{where}: not found")
    kind = RegistryDeniedError if response.status in {401, 403} else RegistryError
    raise kind(
        f"{where}: {response.status} {response.reason}",
        method=method,
        url=redacted(url),
        status=response.status,
    )


async def _bounded(response: aiohttp.ClientResponse, limit: int) -> bytes:
    parts: list[bytes] = []
    length = 0
    async for chunk in _chunks(response, str(response.url)):
        length += len(chunk)
        if length > limit:
            raise CorruptError(f"{redacted(str(response.url))} is larger than {limit} bytes")
        parts.append(chunk)
    return b"".join(parts)


async def _chunks(response: aiohttp.ClientResponse, url: str) -> AsyncIterator[bytes]:
    import aiohttp

    try:
        async for chunk in response.content.iter_any():
            yield chunk
    except (aiohttp.ClientError, TimeoutError, OSError) as exc:
        raise RegistryError(
            f"{redacted(url)} broke off: {str(exc) or type(exc).__name__}", url=redacted(url)
        ) from exc
