# SPDX-License-Identifier: Apache-2.0
"""Metrics, health and readiness, asked over real sockets on loopback."""

from __future__ import annotations

import http.client
import os
import socket
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families

from criagent._proto import api_pb2, api_pb2_grpc
from criagent.base.aio import Owner, Owners
from criagent.base.errors import ExhaustedError, UnavailableError, UnsupportedError
from criagent.cri.boundary import Boundary
from criagent.daemon.service_notify import notify
from criagent.telemetry import telemetry
from criagent.telemetry.telemetry import Telemetry
from criagent.version import VERSION
from tests.support.otlp import Collector, attributes


@pytest.fixture
def metrics() -> Iterator[Telemetry]:
    made = Telemetry()
    yield made
    made.close()


def free_port(host: str = "127.0.0.1") -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as sock:
        sock.bind((host, 0))
        port: int = sock.getsockname()[1]
        return port


def get(port: int, path: str, host: str = "127.0.0.1", method: str = "GET") -> tuple[int, str]:
    connection = http.client.HTTPConnection(host, port, timeout=10)
    connection.request(method, path)
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    return answer.status, body


def samples(text: str) -> dict[str, float]:
    return {
        sample.name + "".join(sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_metrics_tell_calls_gauges_and_the_process(metrics: Telemetry) -> None:
    count = [3.0]
    metrics.gauge("criagent_x", "X.", lambda: count[0])
    metrics.gauge("criagent_y", "Y.", lambda: {"a": 1.0, "b": count[0]}, label="kind")
    metrics.counter("criagent_z", "Z.", lambda: {"a": 5.0}, label="kind")
    metrics.rpc("RunPodSandbox", "OK", 0.02)
    metrics.rpc("RunPodSandbox", "OK", 0.03)
    port = free_port()
    metrics.serve(f"127.0.0.1:{port}", lambda: True)
    found = samples(get(port, "/metrics")[1])
    assert found["criagent_x"] == 3
    assert found["criagent_ya"] == 1
    assert found["criagent_yb"] == 3
    assert found["criagent_z_totala"] == 5
    assert found[telemetry.RPC_SECONDS + "_count" + "OKRunPodSandbox"] == 2
    assert found["process_resident_memory_bytes"] > 0
    count[0] = 4
    assert samples(get(port, "/metrics?x=1")[1])["criagent_x"] == 4


def test_health_follows_the_callback_and_unknown_paths_are_404(metrics: Telemetry) -> None:
    healthy = [False]
    port = free_port()
    metrics.serve(f"localhost:{port}", lambda: healthy[0])
    assert get(port, "/healthz") == (503, "recovering\n")
    healthy[0] = True
    assert get(port, "/healthz") == (200, "ok\n")
    assert get(port, "/") == (404, "not found; there are /metrics and /healthz\n")


@pytest.mark.parametrize(("path", "status"), [("/metrics", 200), ("/healthz", 503), ("/x", 404)])
def test_head_answers_as_get_without_a_body(metrics: Telemetry, path: str, status: int) -> None:
    port = free_port()
    metrics.serve(f"127.0.0.1:{port}", lambda: False)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    lengths = []
    for method in ("HEAD", "GET"):
        connection.request(method, path)
        answer = connection.getresponse()
        body = answer.read()
        assert answer.status == status
        assert (body == b"") == (method == "HEAD")
        lengths.append(answer.headers["Content-Length"])
        connection.close()
    assert int(lengths[0]) > 0


def test_an_ipv6_address_is_served(metrics: Telemetry) -> None:
    port = free_port("::1")
    metrics.serve(f"[::1]:{port}", lambda: True)
    assert get(port, "/healthz", "::1")[0] == 200


def test_no_address_serves_nothing_and_close_frees_the_port(metrics: Telemetry) -> None:
    metrics.serve("", lambda: True)
    metrics.close()
    port = free_port()
    for _ in range(2):
        metrics.serve(f"127.0.0.1:{port}", lambda: True)
        assert get(port, "/healthz")[0] == 200
        metrics.close()


def test_a_taken_address_is_refused_with_the_key_to_change(metrics: Telemetry) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UnavailableError, match=r"127.0.0.1:\d+.*telemetry.metrics_address"):
            metrics.serve(f"127.0.0.1:{port}", lambda: True)


def test_a_reader_that_leaves_prints_nothing_and_harms_no_other(
    metrics: Telemetry, capfd: pytest.CaptureFixture[str]
) -> None:
    port = free_port()
    metrics.serve(f"127.0.0.1:{port}", lambda: True)
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", port)) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        assert get(port, "/healthz")[0] == 200  # and the server's queue is empty again
    metrics.close()
    assert "Traceback" not in capfd.readouterr().err


def test_a_gauge_that_fails_is_an_event_not_a_traceback(
    metrics: Telemetry, capfd: pytest.CaptureFixture[str]
) -> None:
    def broken() -> float:
        raise RuntimeError("no store")

    metrics.gauge("criagent_x", "X.", broken)
    port = free_port()
    metrics.serve(f"127.0.0.1:{port}", lambda: True)
    with pytest.raises(http.client.RemoteDisconnected):
        get(port, "/metrics")
    assert get(port, "/healthz")[0] == 200
    captured = capfd.readouterr()
    assert "scrape_failed" in captured.out + captured.err
    assert "Traceback" not in captured.out + captured.err


# Spans


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.close()


TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
FACTS = {
    "pod": "ns/web",
    "pod_uid": "u1",
    "sandbox_id": "s1",
    "container": "main",
    "container_id": "c1",
    "image": "web:1",
}


def test_a_span_names_call_pod_container_image_and_status(collector: Collector) -> None:
    made = Telemetry(collector.endpoint)
    parent = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
    for code, text in ((0, ""), (13, "conmon died"), (1, "the caller left")):
        with made.call_span("runtime.v1.RuntimeService", "StartContainer", parent) as span:
            assert span.trace_id == TRACE
            span.about(FACTS)
            span.ended(code, text)
    made.close()
    fine, failed, cancelled = collector.spans()
    assert attributes(fine.attributes) == {
        "rpc.system": "grpc",
        "rpc.service": "runtime.v1.RuntimeService",
        "rpc.method": "StartContainer",
        "rpc.grpc.status_code": 0,
        "k8s.namespace.name": "ns",
        "k8s.pod.name": "web",
        "k8s.pod.uid": "u1",
        "criagent.sandbox.id": "s1",
        "k8s.container.name": "main",
        "container.id": "c1",
        "container.image.name": "web:1",
    }
    assert (fine.name, fine.trace_id.hex(), fine.parent_span_id.hex()) == (
        "runtime.v1.RuntimeService/StartContainer",
        TRACE,
        PARENT,
    )
    assert fine.kind == fine.SPAN_KIND_SERVER
    assert fine.status.code == fine.status.STATUS_CODE_UNSET
    assert (failed.status.code, failed.status.message) == (
        failed.status.STATUS_CODE_ERROR,
        "conmon died",
    )
    assert attributes(failed.attributes)["rpc.grpc.status_code"] == 13
    assert cancelled.status.code == cancelled.status.STATUS_CODE_UNSET
    assert attributes(cancelled.attributes)["error.message"] == "the caller left"


def test_the_resource_names_service_version_and_host(collector: Collector) -> None:
    made = Telemetry(collector.endpoint)
    with made.call_span("s", "m", {}):
        pass
    made.close()
    found = collector.resource()
    assert (
        found.items()
        >= {
            "service.name": "criagent",
            "service.version": VERSION,
            "host.name": os.uname().nodename,
        }.items()
    )


def test_stages_of_the_work_are_spans_below_that_of_the_call(collector: Collector) -> None:
    made = Telemetry(collector.endpoint)
    with made.call_span("s", "RunPodSandbox", {}) as span:
        hear = span.stages("web_ns_u1_0")
        for stage in ("namespaces", "network", ""):
            hear(stage)
    made.close()
    first, second, call = collector.spans()
    assert [one.name for one in (first, second, call)] == [
        "namespaces",
        "network",
        "s/RunPodSandbox",
    ]
    for one in (first, second):
        assert one.parent_span_id == call.span_id
        assert attributes(one.attributes) == {"criagent.work": "web_ns_u1_0"}
    assert first.end_time_unix_nano <= second.start_time_unix_nano


async def test_a_failed_call_has_the_status_of_its_error_and_not_grpcs_abort(
    collector: Collector, tmp_path: Path
) -> None:
    class Service(api_pb2_grpc.RuntimeServiceServicer):
        async def RunPodSandbox(self, request: Any, context: Any) -> Any:  # noqa: N802
            owners: Owners[str, None] = Owners(limit_s=60)
            await owners.join(owners.start("web_ns_u1_0", None, self._work))

        async def _work(self, owner: Owner[str, None]) -> None:
            owner.stage = "network"
            raise ExhaustedError("no address is free")

    made = Telemetry(collector.endpoint)
    server = grpc.aio.server(interceptors=[Boundary(made, lambda: True, lambda _: FACTS)])
    api_pb2_grpc.add_RuntimeServiceServicer_to_server(Service(), server)
    server.add_insecure_port(f"unix:{tmp_path}/s")
    await server.start()
    async with grpc.aio.insecure_channel(f"unix:{tmp_path}/s") as channel:
        with pytest.raises(grpc.aio.AioRpcError):
            await api_pb2_grpc.RuntimeServiceStub(channel).RunPodSandbox(
                api_pb2.RunPodSandboxRequest(),
                metadata=[("traceparent", f"00-{TRACE}-{PARENT}-01")],
            )
    await server.stop(None)
    made.close()
    stage, call = collector.spans()
    assert (call.status.code, call.status.message) == (
        call.status.STATUS_CODE_ERROR,
        "no address is free",
    )
    assert attributes(call.attributes)["rpc.grpc.status_code"] == 8
    assert attributes(call.attributes)["k8s.pod.name"] == "web"
    assert list(call.events) == []
    assert (stage.name, stage.parent_span_id, stage.trace_id.hex()) == (
        "network",
        call.span_id,
        TRACE,
    )


def test_without_an_endpoint_a_call_has_the_trace_of_its_caller(metrics: Telemetry) -> None:
    parent = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
    with metrics.call_span("s", "m", parent) as span:
        assert (span.trace_id, span.recording) == (TRACE, False)
        span.about(FACTS)
        span.ended(13, "x")
    with metrics.call_span("s", "m", {}) as span:
        assert span.trace_id == ""


@pytest.mark.parametrize(
    "traceparent",
    [
        "",
        "00",
        f"ff-{TRACE}-{PARENT}-01",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{PARENT}-01",
        f"00-{TRACE}{PARENT}-01",
    ],
)
def test_a_malformed_trace_of_a_caller_is_none(metrics: Telemetry, traceparent: str) -> None:
    with metrics.call_span("s", "m", {"traceparent": traceparent}) as span:
        assert span.trace_id == ""


def test_an_endpoint_without_the_exporter_names_the_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = "opentelemetry.exporter.otlp.proto.http.trace_exporter"
    monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    monkeypatch.delitem(sys.modules, "criagent.telemetry.spans", raising=False)
    with pytest.raises(UnsupportedError, match=r"criagent\[otlp\]"):
        Telemetry("http://127.0.0.1:4318/v1/traces")


@pytest.mark.parametrize("abstract", [False, True])
def test_notify_sends_one_datagram(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *, abstract: bool
) -> None:
    name = f"@criagent-test-{tmp_path.name}-{free_port()}" if abstract else f"{tmp_path}/n"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(name.replace("@", "\0", 1) if abstract else name)
        manager.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        notify("READY=1")
        assert manager.recv(100) == b"READY=1"


@pytest.mark.parametrize("value", [None, "", "relative", "/nowhere/socket", "/" + "x" * 200])
def test_notify_without_a_listener_does_nothing(
    monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    if value is not None:
        monkeypatch.setenv("NOTIFY_SOCKET", value)
    notify("READY=1")
