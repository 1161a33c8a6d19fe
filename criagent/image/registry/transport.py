# SPDX-License-Identifier: Apache-2.0
"""Requests over one pool of connections, redirects followed by hand.

Headers for every hop of a redirect and headers for one origin are separate: the second are computed
again at each hop. Ten hops at most, like Go's clients, and never from https to http.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from criagent.base.errors import (
    CorruptError,
    RegistryError,
    RegistrySilentError,
    RegistryUnreachableError,
)
from criagent.image.hosts.proxy import ProxySettings
from criagent.image.registry.challenge import Challenge, parse_challenges
from criagent.image.registry.coding import Undo, codings_of
from criagent.image.registry.failure import (
    MAX_BODY,
    Details,
    Refusal,
    Speaker,
    details_of,
    printable,
)
from criagent.image.registry.reach import Reachability
from criagent.image.registry.retry import Clock, retry_after_s
from criagent.image.registry.urls import Origin, origin, redacted, redirect_target

if TYPE_CHECKING:
    import aiohttp
    from yarl import URL

MAX_REDIRECTS = 10
DIAL_TIMEOUT_S = 30.0  # containerd's default
_NEXT_PAGE = re.compile(
    r"""<([^<>]{1,4096})>[^<,]*;\s*rel=(?:next\b|"(?:[^"]*\s)?next[\s"])""", re.IGNORECASE
)
_PER_HOST = 64  # connections: four pulls of four blobs in four ranges each
_CHUNK = 1 << 20
_BODY_TIMEOUT_S = 5.0  # a refusal without its text is better than a late one
_MOVED = {301, 302, 303, 307, 308}


def _nothing(_: Origin) -> Mapping[str, str]:
    return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A GET, or the POST of a `form`. `headers` go to every hop; `private` gives one origin's."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    private: Callable[[Origin], Mapping[str, str]] = _nothing
    form: Mapping[str, str] | None = None
    tls: ssl.SSLContext | None = None
    dial_timeout_s: float = DIAL_TIMEOUT_S
    answer_timeout_s: float = 0.0  # from the request to its answer, and between two parts; 0 = none

    @property
    def method(self) -> str:
        """POST with a form."""
        return "GET" if self.form is None else "POST"


class Answer:
    """A response whose header has arrived; valid within the block that yielded it."""

    def __init__(self, response: aiohttp.ClientResponse, request: Request, url: str) -> None:
        self.status = response.status
        self.url = redacted(url)
        self.origin = origin(url)
        self._method = request.method
        self._response = response

    def header(self, name: str) -> str:
        """The first field of this name, or an empty text."""
        value = self._response.headers.get(name, "")
        return value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")

    @property
    def challenges(self) -> list[Challenge]:
        """What a 401 asks for."""
        return parse_challenges(self._response.headers.getall("WWW-Authenticate", []))

    @property
    def codings(self) -> tuple[str, ...]:
        """The content codings of the body, in the order in which they were applied."""
        return codings_of(self._response.headers.getall("Content-Encoding", []))

    @property
    def length(self) -> int | None:
        """The body's length as it is sent, None when the server does not say."""
        return self._response.content_length

    @property
    def location(self) -> str | None:
        """Where a redirect leads, as it was written."""
        if self.status not in _MOVED:
            return None
        return self._response.headers.get("Location") or None

    @property
    def next_page(self) -> str | None:
        """Where a list goes on, as it was written (RFC 8288)."""
        for link in self._response.headers.getall("Link", []):
            if found := _NEXT_PAGE.search(link):
                return found[1]
        return None

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it is sent. Raises RegistryError when it breaks off."""
        import aiohttp

        try:
            async for chunk in self._response.content.iter_any():
                yield chunk
        except (aiohttp.ClientError, TimeoutError, OSError) as exc:
            raise RegistryError(
                f"{self.url} broke off: {_cause(exc)}", url=self.url, transient=True
            ) from exc

    async def document(self, limit: int) -> bytes:
        """The body with its codings undone. Raises CorruptError when it is larger than `limit`."""
        undo = Undo(self.codings, self.url)
        parts, length, received = [], 0, 0
        async for chunk in self.chunks():
            received += len(chunk)
            for piece in undo.feed(chunk):
                length += len(piece)
                if max(length, received) > limit:
                    raise CorruptError(f"{self.url} is larger than {limit} bytes")
                parts.append(piece)
            if received > limit:
                raise CorruptError(f"{self.url} is larger than {limit} bytes")
        undo.finish()
        return b"".join(parts)

    async def _beginning(self, limit: int) -> bytes:
        undo, parts = Undo(self.codings, self.url), bytearray()
        async for chunk in self.chunks():
            for piece in undo.feed(chunk):
                parts += piece[: limit - len(parts)]
                if len(parts) == limit:
                    return bytes(parts)
        return bytes(parts)

    async def refusal(self, speaker: Speaker, now: float) -> Refusal:
        """What an unsuccessful answer says, its body read within limits. `now` is the epoch's."""
        details = Details()
        with contextlib.suppress(RegistryError, CorruptError, TimeoutError):
            async with asyncio.timeout(_BODY_TIMEOUT_S):
                details = details_of(await self._beginning(MAX_BODY), speaker)
        reason = self._response.reason or _phrase(self.status)
        return Refusal(
            method=self._method,
            url=self.url,
            status=self.status,
            reason=reason,
            details=details,
            retry_after_s=retry_after_s(self.header("Retry-After"), now),
        )


class Transport:
    """The pool of connections, without cookies, and what is known of hosts."""

    def __init__(self, proxies: ProxySettings, clock: Clock) -> None:
        self.clock = clock
        self.reach = Reachability(clock)
        self.proxies = proxies
        self._client: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Close all connections."""
        if self._client is not None:
            await self._client.close()

    @contextlib.asynccontextmanager
    async def open(self, request: Request) -> AsyncIterator[Answer]:
        """The answer at the end of the redirects, whatever its status. Raises RegistryError.

        The answer to a form is given as it is: what the form holds goes nowhere else.
        """
        url = request.url
        for _ in range(MAX_REDIRECTS + 1):
            async with contextlib.AsyncExitStack() as hop:
                answer = Answer(await self._send(hop, request, url), request, url)
                if answer.location is None or request.form is not None:
                    yield answer
                    return
                target = _next_hop(request, url, answer.location)
            url = target
        raise RegistryError(
            f"{redacted(request.url)} redirects more than {MAX_REDIRECTS} times",
            method=request.method,
            url=redacted(request.url),
        )

    async def _send(
        self, hop: contextlib.AsyncExitStack, request: Request, url: str
    ) -> aiohttp.ClientResponse:
        """The response of one server, released with `hop`."""
        import aiohttp

        method, shown = request.method, redacted(url)
        at = _origin(method, url)
        try:
            async with self.reach.dial(at) as connected:
                return await hop.enter_async_context(
                    self._pool().request(
                        method,
                        _asked(url),
                        headers={
                            "Accept-Encoding": "identity",
                            **request.headers,
                            **request.private(at),
                        },
                        data=request.form,
                        ssl=request.tls if request.tls is not None else True,
                        proxy=self.proxies.for_url(url),
                        timeout=aiohttp.ClientTimeout(
                            total=None,
                            sock_connect=request.dial_timeout_s or None,
                            sock_read=request.answer_timeout_s or None,
                        ),
                        allow_redirects=False,
                        trace_request_ctx={"connected": connected},
                    )
                )
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as exc:
            text = _unreachable(exc, at, request.dial_timeout_s)
            if isinstance(exc, aiohttp.ClientSSLError):  # costs no time, and may soon be mended
                raise RegistryError(text, method=method, url=shown) from exc
            self.reach.failed(at, text)
            raise RegistryUnreachableError(text, method=method, url=shown) from exc
        except aiohttp.SocketTimeoutError as exc:
            text = f"{at} has not answered within {request.answer_timeout_s:g} s"
            self.reach.failed(at, text)
            raise RegistrySilentError(text, method=method, url=shown) from exc
        except (aiohttp.ClientConnectionError, ConnectionError) as exc:
            text = f"{method} {shown}: {_cause(exc)}"
            raise RegistryError(text, method=method, url=shown, transient=True) from exc
        except (aiohttp.ClientError, OSError, ValueError) as exc:  # OSError: of TLS files too
            text = f"{method} {shown}: {_cause(exc)}"
            raise RegistryError(text, method=method, url=shown) from exc

    def _pool(self) -> aiohttp.ClientSession:
        if self._client is None:
            import aiohttp

            from criagent.image.registry.wire import MAX_HEADER, MAX_LINES, Connector

            trace = aiohttp.TraceConfig()
            trace.on_connection_create_end.append(_on_connected)
            trace.on_connection_reuseconn.append(_on_connected)
            self._client = aiohttp.ClientSession(
                connector=Connector(_PER_HOST),
                cookie_jar=aiohttp.DummyCookieJar(),  # one pull's rights are not another's
                auto_decompress=False,
                read_bufsize=_CHUNK,
                max_line_size=MAX_HEADER,
                max_field_size=MAX_HEADER,
                max_headers=MAX_LINES,
                headers={"User-Agent": "criagent"},
                trace_configs=[trace],
            )
        return self._client


def _origin(method: str, url: str) -> Origin:
    try:
        return origin(url)
    except ValueError as exc:
        shown = redacted(url)
        raise RegistryError(f"{method} {shown}: {exc}", method=method, url=shown) from None


async def _on_connected(_: object, context: Any, __: object) -> None:
    await context.trace_request_ctx["connected"]()


def _asked(url: str) -> URL:
    """The URL as it is written. Without user and password: those are not ours to send."""
    from yarl import URL

    split = urlsplit(url)
    if "@" in split.netloc:
        url = url.replace(f"{split.netloc.rpartition('@')[0]}@", "", 1)
    return URL(url, encoded=True)


def _next_hop(request: Request, url: str, location: str) -> str:
    shown = redacted(url)
    try:
        target = redirect_target(url, location)
        new = origin(target)
    except ValueError as exc:
        raise RegistryError(
            f"{shown} redirects to the invalid address {printable(location, 200)!r}: {exc}",
            method=request.method,
            url=shown,
        ) from None
    if (origin(url).scheme, new.scheme) == ("https", "http"):
        raise RegistryError(
            f"{shown} redirects from https to http", method=request.method, url=shown
        )
    return target


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""


def _unreachable(exc: Exception, at: Origin, dial_timeout_s: float) -> str:
    """Why there is no connection to `at`: the same text each time, so that events add up."""
    import aiohttp

    if isinstance(exc, aiohttp.ConnectionTimeoutError):
        return f"cannot connect to {at}: no answer within {dial_timeout_s:g} s"
    if isinstance(exc, aiohttp.ClientConnectorDNSError):
        return f"cannot resolve {at.host}: {_strerror(exc.os_error)}"
    if isinstance(exc, aiohttp.ClientConnectorCertificateError):
        error = exc.certificate_error
        why = getattr(error, "verify_message", "") or printable(str(error), 200)
        return f"cannot trust {at}: {why}; set the CA in hosts.toml"
    if isinstance(exc, aiohttp.ClientProxyConnectionError):
        return f"cannot connect to the proxy for {at}: {_strerror(exc.os_error)}"
    if isinstance(exc, aiohttp.ClientSSLError):
        plain = "WRONG_VERSION_NUMBER" in str(exc.os_error) or "RECORD_LAYER" in str(exc.os_error)
        cure = "; if it serves plain HTTP, write it as http:// in hosts.toml" if plain else ""
        return f"cannot make a TLS connection to {at}: {_strerror(exc.os_error)}{cure}"
    error = exc.os_error if isinstance(exc, aiohttp.ClientConnectorError) else exc
    return f"cannot connect to {at}: {_strerror(error)}"


def _strerror(error: BaseException) -> str:
    if isinstance(error, OSError) and not isinstance(error, ssl.SSLError | socket.gaierror):
        if error.errno:
            return os.strerror(error.errno)
        addresses = "Connect call failed" in str(error)  # one failure for each address
        return "no address answers" if addresses else printable(str(error), 200)
    return printable(getattr(error, "strerror", None) or str(error) or type(error).__name__, 200)


def _cause(exc: BaseException) -> str:
    """What happened within a connection, without what differs from one time to the next."""
    import aiohttp

    if isinstance(exc, aiohttp.ClientHttpProxyError):
        return f"the proxy answered {exc.status} {printable(exc.message, 200)}"
    if isinstance(exc, aiohttp.ClientResponseError):
        return f"malformed answer: {printable(exc.message, 200)}"
    if isinstance(exc, aiohttp.ClientPayloadError):
        return "the body is incomplete"
    if isinstance(exc, aiohttp.SocketTimeoutError):
        return "nothing more was sent in time"
    if isinstance(exc, aiohttp.ServerDisconnectedError):
        return "the server closed the connection"
    if isinstance(exc, OSError) and exc.errno:
        file = f": {exc.filename}" if exc.filename else ""
        return os.strerror(exc.errno) + file
    return printable(str(exc) or type(exc).__name__, 200)
