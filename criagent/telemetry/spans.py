# SPDX-License-Identifier: Apache-2.0
"""Spans over OTLP; imported when an endpoint is configured. ImportError without the exporter."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.propagate import extract
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from criagent.telemetry.call_span import CallSpan
from criagent.version import VERSION

_CANCELLED = 1  # gRPC's number
# Facts of log lines as OpenTelemetry's semantic conventions name them.
_ATTRIBUTES = {
    "pod_uid": "k8s.pod.uid",
    "sandbox_id": "criagent.sandbox.id",
    "container": "k8s.container.name",
    "container_id": "container.id",
    "image": "container.image.name",
}


class Spans:
    """Exports the spans of calls to `endpoint`."""

    def __init__(self, endpoint: str) -> None:
        self._provider = TracerProvider(
            resource=Resource.create(
                {
                    "service.name": "criagent",
                    "service.version": VERSION,
                    "host.name": os.uname().nodename,
                }
            ),
            shutdown_on_exit=False,  # `close` does it
        )
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
        self._tracer = trace.get_tracer("criagent", tracer_provider=self._provider)

    @contextmanager
    def call(
        self, service: str, method: str, metadata: Mapping[str, str | bytes]
    ) -> Iterator[CallSpan]:
        """As `Telemetry.call_span`."""
        with self._tracer.start_as_current_span(
            f"{service}/{method}",
            context=extract(metadata),
            kind=SpanKind.SERVER,
            attributes={"rpc.system": "grpc", "rpc.service": service, "rpc.method": method},
            record_exception=False,  # the boundary knows the failure better
            set_status_on_exception=False,
        ) as span:
            yield _ExportedSpan(span, self._tracer)

    def close(self) -> None:
        """Send the remaining spans."""
        self._provider.shutdown()


class _ExportedSpan(CallSpan):
    def __init__(self, span: Span, tracer: trace.Tracer) -> None:
        found = span.get_span_context()
        super().__init__(format(found.trace_id, "032x") if found.is_valid else "")
        self._span = span
        self._tracer = tracer

    @property
    def recording(self) -> bool:
        """Whether it is sampled."""
        return self._span.is_recording()

    def about(self, facts: Mapping[str, str]) -> None:
        """Name pod, container and image."""
        for key, name in _ATTRIBUTES.items():
            if key in facts:
                self._span.set_attribute(name, facts[key])
        if "pod" in facts:
            namespace, _, name = facts["pod"].partition("/")
            self._span.set_attribute("k8s.namespace.name", namespace)
            self._span.set_attribute("k8s.pod.name", name)

    def ended(self, code: int, text: str) -> None:
        """The call's gRPC status; every failure but a cancellation is an error of the span."""
        self._span.set_attribute("rpc.grpc.status_code", code)
        if code == _CANCELLED:
            self._span.set_attribute("error.message", text)
        elif code:
            self._span.set_status(Status(StatusCode.ERROR, text))

    def stages(self, key: str) -> Callable[[str], None]:
        """Listens to the stages of an owner that this call starts: a child span for each."""
        parent = trace.set_span_in_context(self._span)
        current: list[Span] = []

        def begin(stage: str) -> None:
            if current:
                current.pop().end()
            if stage:
                span = self._tracer.start_span(stage, context=parent)
                span.set_attribute("criagent.work", key)
                current.append(span)

        return begin
