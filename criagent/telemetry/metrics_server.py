# SPDX-License-Identifier: Apache-2.0
"""The HTTP server of metrics, health and the node page, with a thread for each connection.

On addresses that other machines reach, requests come over TLS and carry a token. /healthz says
nothing but whether the agent serves, and needs none.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
import sys
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from threading import BoundedSemaphore, Event
from typing import TYPE_CHECKING, Any

import structlog
from prometheus_client.exposition import CONTENT_TYPE_LATEST

if TYPE_CHECKING:
    from criagent.base.certificate import Certificate
    from criagent.base.tokens import TokenFile

_REQUEST_S = 5.0
_CONNECTIONS = 64  # at a time; the clients of one more are hung up on
# A browser runs no script and loads nothing, whatever a page has in it.
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Access:
    """Who may read: with a certificate only over TLS, with tokens only who has one of them."""

    certificate: Certificate | None = None
    tokens: TokenFile | None = None

    def allows(self, authorization: str) -> bool:
        """Whether a request with this Authorization header may read."""
        if self.tokens is None:
            return True
        try:
            self.tokens.refresh()
        except (OSError, ValueError) as exc:
            log.warning("metrics_token_not_renewed", error=str(exc))
        return self.tokens.allows(authorization)


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """What is served. `metrics` is in the text format of Prometheus; `page` is HTML."""

    metrics: Callable[[], bytes]
    healthy: Callable[[], bool]
    page: Callable[[], str] | None
    access: Access


class _Handler(BaseHTTPRequestHandler):
    timeout = _REQUEST_S
    server: MetricsServer

    def do_GET(self) -> None:
        site, path = self.server.site, self.path.partition("?")[0]
        if path == "/healthz":
            self._answer(*((200, b"ok\n") if site.healthy() else (503, b"recovering\n")))
        elif not site.access.allows(self.headers.get("Authorization", "")):
            self._answer(401, b"a bearer token of telemetry.metrics_token_file is needed\n")
        elif path == "/metrics":
            self._answer(200, site.metrics(), CONTENT_TYPE_LATEST)
        elif path == "/" and site.page is not None and self._may_have_page():
            try:
                body = site.page().encode("utf-8", "replace")
            except TimeoutError:
                self._answer(503, b"the agent is busy; try again\n")
            else:
                self._answer(200, body, "text/html; charset=utf-8")
        else:
            self._answer(404, b"not found; there are /metrics and /healthz\n")

    def do_HEAD(self) -> None:
        self.do_GET()

    def _may_have_page(self) -> bool:
        """A web site that made its name lead here has no token."""
        with_token = self.server.site.access.tokens is not None
        return with_token or _is_local(self.headers.get("Host", ""))

    def _answer(self, status: int, body: bytes, kind: str = "text/plain") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if status == 401:
            self.send_header("WWW-Authenticate", 'Bearer realm="criagent"')
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Scrapes are not logged."""


def _is_local(host: str) -> bool:
    """Whether a Host header names no other machine: a foreign name that was made to lead to this
    address (DNS rebinding) would let a web site read the page.
    """
    name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
    if name == "localhost":
        return True
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


class MetricsServer(ThreadingHTTPServer):
    """Serves `site` on `address` ("host:port"). Raises OSError for one that cannot be used."""

    daemon_threads = True

    def __init__(self, address: str, site: Site) -> None:
        host, _, port = address.rpartition(":")
        if ":" in host:
            self.address_family = socket.AF_INET6
        self.site = site
        self._ending, self._ended = Event(), Event()
        self._free = BoundedSemaphore(_CONNECTIONS)
        super().__init__((host.strip("[]"), int(port)), _Handler)

    def server_bind(self) -> None:
        """As the base class, without its host name look-up, which can hang for seconds."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def serve(self) -> None:
        """Answer until `end`. The base class's loop would wake twice a second for nothing."""
        while not self._ending.is_set():
            self.handle_request()
        self._ended.set()

    def end(self) -> None:
        """Stop listening; returns when nothing is accepted any more."""
        self._ending.set()
        self.socket.shutdown(socket.SHUT_RDWR)  # wakes the thread in `serve`
        self._ended.wait()
        self.server_close()

    def process_request(self, request: Any, client_address: Any) -> None:
        """In a thread of its own, if there are not too many."""
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """As the base class."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Answer, over TLS if there is a certificate. The handshake is the thread's own matter."""
        certificate = self.site.access.certificate
        if certificate is None:
            super().finish_request(request, client_address)
            return
        certificate.refresh_here()
        request.settimeout(_REQUEST_S)
        with certificate.context.wrap_socket(request, server_side=True) as encrypted:
            super().finish_request(encrypted, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log one event; the base class would print a traceback between the log lines."""
        del request, client_address
        error = sys.exception()
        # the reader may leave at any time, or speak no TLS
        if not isinstance(error, ConnectionError | TimeoutError | ssl.SSLError):
            log.error("scrape_failed", error=repr(error))
