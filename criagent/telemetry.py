"""Metrics over HTTP on loopback, spans over OTLP when an endpoint is configured."""

from __future__ import annotations

from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import TYPE_CHECKING

from opentelemetry import trace
from prometheus_client import CollectorRegistry, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from criagent.errors import UnsupportedError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

RPC_SECONDS = "criagent_rpc_seconds"
SANDBOXES = "criagent_sandboxes"
CONTAINERS = "criagent_containers"
IMAGES = "criagent_images"

_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60, 300)
_REQUEST_S = 5.0


class Telemetry:
    """The daemon's metrics and tracer."""

    def __init__(self, otlp_endpoint: str = "") -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.rpc_seconds = Histogram(
            RPC_SECONDS,
            "Time of CRI calls by method and gRPC status.",
            ("method", "code"),
            registry=self.registry,
            buckets=_BUCKETS,
        )
        self._provider = _exporting(otlp_endpoint) if otlp_endpoint else None
        self.tracer = trace.get_tracer("criagent", tracer_provider=self._provider)
        self._server: ThreadingHTTPServer | None = None

    def count(self, name: str, text: str, value: Callable[[], float]) -> None:
        """A gauge that is asked when metrics are read."""
        Gauge(name, text, registry=self.registry).set_function(value)

    def serve(self, address: str, healthy: Callable[[], bool]) -> None:
        """Answer /metrics and /healthz on `address` ("host:port"); "" = nowhere.

        Raises OSError when the address is taken.
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
                        self._answer(200, generate_latest(registry))
                    case "/healthz":
                        self._answer(*((200, b"ok\n") if healthy() else (503, b"recovering\n")))
                    case _:
                        self._answer(404, b"")

            def _answer(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", CONTENT_TYPE_LATEST)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Scrapes are no events."""

        self._server = _Server((host.strip("[]"), int(port)), Handler)
        Thread(target=self._server.serve_forever, name="metrics", daemon=True).start()

    def close(self) -> None:
        """Stop answering and send the last spans."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
        if self._provider is not None:
            self._provider.shutdown()


class _Server(ThreadingHTTPServer):
    daemon_threads = True


def _exporting(endpoint: str) -> TracerProvider:
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import (
            OTLPSpanExporter,
        )
    except ImportError:
        raise UnsupportedError(
            "telemetry.otlp_endpoint is set, but the exporter is not installed: "
            "pip install criagent[otlp]"
        ) from None
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider as Provider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = Provider(resource=Resource.create({"service.name": "criagent"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
    return provider
