"""Metrics, health and readiness, asked over real sockets on loopback."""

from __future__ import annotations

import http.client
import socket
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from criagent import telemetry
from criagent.errors import UnavailableError, UnsupportedError
from criagent.service_notify import notify
from criagent.telemetry import Telemetry


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


def get(port: int, path: str, host: str = "127.0.0.1") -> tuple[int, str]:
    connection = http.client.HTTPConnection(host, port, timeout=10)
    connection.request("GET", path)
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
    assert get(port, "/")[0] == 404


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
    assert get(port, "/healthz")[0] == 200
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


def test_spans_cost_nothing_without_an_endpoint(metrics: Telemetry) -> None:
    with metrics.tracer.start_as_current_span("x") as span:
        assert not span.is_recording()


def test_an_endpoint_without_the_exporter_names_the_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = "opentelemetry.exporter.otlp.proto.http.trace_exporter"
    monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
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
