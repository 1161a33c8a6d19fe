# SPDX-License-Identifier: Apache-2.0
"""Metrics over HTTP on loopback; spans over OTLP when an endpoint is configured."""

from __future__ import annotations

import ipaddress
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

import structlog
from prometheus_client import (
    CollectorRegistry,
    Histogram,
    Metric,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from criagent.base.errors import UnavailableError, UnsupportedError
from criagent.telemetry.call_span import CallSpan, caller_trace

if TYPE_CHECKING:
    from criagent.telemetry.spans import Spans

RPC_SECONDS = "criagent_rpc_seconds"

Value = float | Mapping[str, float]

_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60, 300)
_REQUEST_S = 5.0
# A browser runs no script and loads nothing, whatever a page has in it.
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_LAST_SPANS_S = 2.0  # an unreachable collector would delay a restart by seconds

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class Telemetry:
    """The daemon's metrics and tracer."""

    def __init__(self, otlp_endpoint: str = "") -> None:
        # Prevents a second, unused series for each metric.
        disable_created_metrics()  # type: ignore[no-untyped-call] # the library's
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.rpc_seconds = Histogram(
            RPC_SECONDS,
            "Time of CRI calls by method and gRPC status.",
            ("method", "code"),
            registry=self.registry,
            buckets=_BUCKETS,
        )
        self._rpcs: dict[tuple[str, str], Histogram] = {}
        self._spans = _exporting(otlp_endpoint) if otlp_endpoint else None
        self._server: _Server | None = None

    def gauge(self, name: str, text: str, value: Callable[[], Value], label: str = "") -> None:
        """A gauge whose value is computed when metrics are read, in the reader's thread.

        With `label`, `value` returns a number for each value of the label.
        """
        self.registry.register(_Asked(GaugeMetricFamily, name, text, label, value))

    def counter(self, name: str, text: str, value: Callable[[], Value], label: str = "") -> None:
        """The same for a number that only grows; "_total" is appended to `name`."""
        self.registry.register(_Asked(CounterMetricFamily, name, text, label, value))

    def rpc(self, method: str, code: str, took_s: float) -> None:
        """Record a call that has ended."""
        child = self._rpcs.get((method, code))
        if child is None:
            child = self._rpcs[method, code] = self.rpc_seconds.labels(method, code)
        child.observe(took_s)

    @contextmanager
    def call_span(
        self, service: str, method: str, metadata: Mapping[str, str | bytes]
    ) -> Iterator[CallSpan]:
        """The span of a call, current in the block; `metadata` may name the caller's trace."""
        if self._spans is None:
            yield CallSpan(caller_trace(metadata))
            return
        with self._spans.call(service, method, metadata) as span:
            yield span

    def serve(
        self, address: str, healthy: Callable[[], bool], page: Callable[[], str] | None = None
    ) -> None:
        """Answer /metrics, /healthz and, with `page`, / on `address` ("host:port"); "" = nowhere.

        Raises UnavailableError when the address is taken or does not belong to this node.
        """
        if not address:
            return
        host, _, port = address.rpartition(":")
        registry = self.registry

        class Handler(BaseHTTPRequestHandler):
            timeout = _REQUEST_S

            def do_GET(self) -> None:
                match self.path.partition("?")[0]:
                    case "/metrics":
                        self._answer(200, generate_latest(registry), CONTENT_TYPE_LATEST)
                    case "/healthz":
                        self._answer(*((200, b"ok\n") if healthy() else (503, b"recovering\n")))
                    case "/" if page is not None and _is_local(self.headers.get("Host", "")):
                        try:
                            body = page().encode("utf-8", "replace")
                        except TimeoutError:
                            self._answer(503, b"the agent is busy; try again\n")
                        else:
                            self._answer(200, body, "text/html; charset=utf-8")
                    case _:
                        self._answer(404, b"not found; there are /metrics and /healthz\n")

            def do_HEAD(self) -> None:
                self.do_GET()

            def _answer(self, status: int, body: bytes, kind: str = "text/plain") -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                for name, value in _HEADERS.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Scrapes are not logged."""

        try:
            self._server = _Server((host.strip("[]"), int(port)), Handler)
        except OSError as exc:
            raise UnavailableError(
                f"metrics cannot be served on {address}: {exc.strerror}; change "
                'telemetry.metrics_address, or set it to "" to serve none'
            ) from exc
        Thread(target=self._server.serve, name="metrics", daemon=True).start()

    def close(self) -> None:
        """Stop answering and send the remaining spans within two seconds."""
        if self._server is not None:
            self._server.end()
            self._server = None
        if self._spans is not None:
            last = Thread(target=self._spans.close, name="last-spans", daemon=True)
            last.start()
            last.join(_LAST_SPANS_S)


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


class _Asked(Collector):
    """One family whose value is computed at each reading."""

    def __init__(
        self,
        family: type[GaugeMetricFamily | CounterMetricFamily],
        name: str,
        text: str,
        label: str,
        value: Callable[[], Value],
    ) -> None:
        self._family = family
        self._name = name
        self._text = text
        self._labels: Sequence[str] = (label,) if label else ()
        self._value = value

    def describe(self) -> list[Metric]:
        """The family without a value: registering asks for none."""
        return [self._family(self._name, self._text, labels=self._labels)]

    def collect(self) -> Iterator[Metric]:
        """The family now."""
        family = self._family(self._name, self._text, labels=self._labels)
        value = self._value()
        for label, number in value.items() if isinstance(value, Mapping) else [("", value)]:
            family.add_metric((label,) if self._labels else (), number)
        yield family


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        self._ending, self._ended = Event(), Event()
        super().__init__(address, handler)

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

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log one event; the base class would print a traceback between the log lines."""
        del request, client_address
        error = sys.exception()
        if not isinstance(
            error, ConnectionError | TimeoutError
        ):  # the reader may leave at any time
            log.error("scrape_failed", error=repr(error))


def _exporting(endpoint: str) -> Spans:
    try:
        from criagent.telemetry.spans import Spans
    except ImportError:
        raise UnsupportedError(
            "telemetry.otlp_endpoint is set, but the exporter is not installed: pip install "
            "criagent[otlp]"
        ) from None
    return Spans(endpoint)
