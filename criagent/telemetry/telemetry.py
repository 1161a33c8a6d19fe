# SPDX-License-Identifier: Apache-2.0
"""Metrics over HTTP on loopback; spans over OTLP when an endpoint is configured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from threading import Thread
from typing import TYPE_CHECKING

import structlog
from prometheus_client import (
    CollectorRegistry,
    Histogram,
    Metric,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from criagent.base.errors import UnavailableError, UnsupportedError
from criagent.telemetry.call_span import CallSpan, caller_trace
from criagent.telemetry.metrics_server import Access, MetricsServer, Site

if TYPE_CHECKING:
    from criagent.telemetry.spans import Spans

RPC_SECONDS = "criagent_rpc_seconds"

Value = float | Mapping[str, float]

_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60, 300)
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
        self._server: MetricsServer | None = None

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

    def call_span(
        self, service: str, method: str, metadata: Mapping[str, str | bytes]
    ) -> AbstractContextManager[CallSpan]:
        """The span of a call, current in the block; `metadata` may name the caller's trace."""
        if self._spans is None:
            return CallSpan(caller_trace(metadata))
        return self._spans.call(service, method, metadata)

    def serve(
        self,
        address: str,
        healthy: Callable[[], bool],
        page: Callable[[], str] | None = None,
        access: Access | None = None,
    ) -> None:
        """Answer /metrics, /healthz and, with `page`, / on `address` ("host:port"); "" = nowhere.

        Raises UnavailableError when the address is taken or does not belong to this node.
        """
        site = Site(
            metrics=lambda: generate_latest(self.registry),
            healthy=healthy,
            page=page,
            access=access or Access(),
        )
        if not address:
            return
        try:
            self._server = MetricsServer(address, site)
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


def _exporting(endpoint: str) -> Spans:
    try:
        from criagent.telemetry.spans import Spans
    except ImportError:
        raise UnsupportedError(
            "telemetry.otlp_endpoint is set, but the exporter is not installed: pip install "
            "criagent[otlp]"
        ) from None
    return Spans(endpoint)
