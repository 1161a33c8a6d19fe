# SPDX-License-Identifier: Apache-2.0
"""Requests to the streaming server: tokens, headers, protocols, TLS, time limits."""

from __future__ import annotations

import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import grpc
import pytest

from tests.support import agent
from tests.support.cri_client import api
from tests.support.pods import Pods
from tests.support.stream_client import (
    SPDY_HEADERS,
    V4,
    Command,
    Refused,
    Spdy,
    WebSocket,
    asked,
    connect,
)
from tests.support.waiting import until

pytestmark = pytest.mark.root

WEBSOCKET_HEADERS = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Protocol": V4,
}


@pytest.fixture
def configured() -> Iterator[None]:
    """For tests that start the agent with a configuration of their own."""
    agent.stop()
    yield
    if agent.running():
        agent.stop()
    agent.start().close()


def exec_url(pods: Pods, container_id: str, *words: str, **streams: bool) -> str:
    wanted = streams or {"stdout": True}
    request = api.ExecRequest(container_id=container_id, cmd=words or ("true",), **wanted)
    return str(pods.cri.runtime.Exec(request, timeout=10).url)


def forward_url(pods: Pods, sandbox: str, *ports: int) -> str:
    request = api.PortForwardRequest(pod_sandbox_id=sandbox, port=ports)
    return str(pods.cri.runtime.PortForward(request, timeout=10).url)


def without(headers: dict[str, str], *names: str, **others: str) -> dict[str, str]:
    kept = {name: value for name, value in headers.items() if name not in names}
    return kept | {name.replace("_", "-"): value for name, value in others.items()}


@pytest.mark.parametrize(
    ("headers", "method", "status"),
    [
        ({}, "GET", 400),
        (without(SPDY_HEADERS, "Connection"), "POST", 400),
        (without(SPDY_HEADERS, Connection="keep-alive"), "POST", 400),
        (without(SPDY_HEADERS, "Upgrade"), "POST", 400),
        (without(SPDY_HEADERS, Upgrade="SPDY/2"), "POST", 400),
        (without(SPDY_HEADERS, Upgrade="h2c"), "POST", 400),
        (without(SPDY_HEADERS, "X-Stream-Protocol-Version"), "POST", 400),
        (without(SPDY_HEADERS, X_Stream_Protocol_Version="v9.channel.k8s.io"), "POST", 403),
        (without(SPDY_HEADERS, X_Stream_Protocol_Version="portforward.k8s.io"), "POST", 403),
        (SPDY_HEADERS, "DELETE", 405),
        (SPDY_HEADERS, "PUT", 405),
        (without(WEBSOCKET_HEADERS, "Connection"), "GET", 400),
        (without(WEBSOCKET_HEADERS, "Sec-WebSocket-Key"), "GET", 400),
        (without(WEBSOCKET_HEADERS, Sec_WebSocket_Version="8"), "GET", 400),
        (without(WEBSOCKET_HEADERS, Sec_WebSocket_Protocol="v9.channel.k8s.io"), "GET", 400),
        (WEBSOCKET_HEADERS, "POST", 400),
        ({"Bad header": "x"}, "GET", 400),
    ],
)
def test_requests_that_are_no_upgrade_are_refused(
    pods: Pods, headers: dict[str, str], method: str, status: int
) -> None:
    container_id = pods.running()
    found, head = asked(exec_url(pods, container_id), headers, method)
    assert found == status, head
    if status == 403:
        assert "v4.channel.k8s.io, v3.channel.k8s.io" in head


def test_port_forward_has_protocols_of_its_own(pods: Pods) -> None:
    sandbox, _ = pods.sandbox()
    assert asked(forward_url(pods, sandbox), SPDY_HEADERS)[0] == 403
    for ports, protocol in (((), V4), ((80,), "v5.channel.k8s.io"), ((80,), "channel.k8s.io")):
        headers = {**WEBSOCKET_HEADERS, "Sec-WebSocket-Protocol": protocol}
        assert asked(forward_url(pods, sandbox, *ports), headers, "GET")[0] == 400


def test_tokens_are_for_one_use_of_one_kind(pods: Pods) -> None:
    container_id = pods.running()
    url = exec_url(pods, container_id)
    token = url.rpartition("/")[2]
    assert len(token) * 6 >= 128  # base64
    assert asked(url.replace("/exec/", "/attach/"), SPDY_HEADERS)[0] == 404
    assert asked(url, SPDY_HEADERS)[0] == 404  # used up by that
    url = exec_url(pods, container_id)
    with Command(url, "stdout") as command:
        assert command.result()[2]["status"] == "Success"
    for path in (url, url[:-1], url + "x", f"{url}/", url.rpartition("/")[0] + "/"):
        assert asked(path, SPDY_HEADERS)[0] == 404


def test_a_thousand_sessions_may_wait(pods: Pods) -> None:
    container_id = pods.running()
    request = api.ExecRequest(container_id=container_id, cmd=["true"], stdout=True)
    urls: list[str] = []
    code = None
    while code is None and len(urls) < 1500:
        try:
            urls.append(pods.cri.runtime.Exec(request, timeout=10).url)
        except grpc.RpcError as error:
            code = error.code()
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert 900 < len(urls) <= 1000
    for url in urls:
        assert asked(url, {})[0] == 400
    exec_url(pods, container_id)


def test_stopped_containers_and_pods_are_refused(pods: Pods) -> None:
    sandbox, config = pods.sandbox()
    container_id = pods.running(pod=(sandbox, config))
    waiting = exec_url(pods, container_id)
    pods.cri.stop(container_id)
    runtime = pods.cri.runtime
    for call, request in (
        (runtime.Exec, api.ExecRequest(container_id=container_id, cmd=["true"], stdout=True)),
        (runtime.Attach, api.AttachRequest(container_id=container_id, stdout=True)),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            call(request, timeout=10)
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    with Command(waiting, "stdout") as command:  # it ran when the URL was made
        status = command.result()[2]
    assert (status["status"], status["reason"]) == ("Failure", "InternalError")
    assert "not running" in status["message"]
    pods.cri.stop_pod(sandbox)
    for ports in ((80,), ()):
        with pytest.raises(grpc.RpcError) as caught:
            forward_url(pods, sandbox, *ports)
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION


@pytest.mark.parametrize("port", [0, 65536, -1])
def test_ports_out_of_range_are_refused(pods: Pods, port: int) -> None:
    sandbox, _ = pods.sandbox()
    with pytest.raises(grpc.RpcError) as caught:
        forward_url(pods, sandbox, port)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("port", ["0", "65536", "-1", "80x", "", "9" * 30])
def test_ports_out_of_range_are_told_on_the_error_stream(pods: Pods, port: str) -> None:
    sandbox, _ = pods.sandbox()
    with Spdy(forward_url(pods, sandbox), "portforward.k8s.io") as client:
        streams = [
            client.open(streamtype=kind, port=port, requestid="0") for kind in ("error", "data")
        ]
        assert b"not between 1 and 65535" in client.until_fin(*streams)[streams[0]]


def test_streams_that_nobody_opens_and_idle_connections_end(configured: None, pods: Pods) -> None:
    pods.cri.close()
    pods.cri = agent.start("[streaming]\ncreation_timeout_s = 1.0\nidle_timeout_s = 3.0\n")
    container_id = pods.running()
    with Spdy(exec_url(pods, container_id, "sleep", "7373", stdin=True, stdout=True)) as client:
        client.open(streamtype="error")  # and no more
        assert client.ended()
    assert b"7373" not in pods.cri.exec(container_id, "ps", "-o", "args").stdout
    sandbox, _ = pods.sandbox()
    with Spdy(forward_url(pods, sandbox), "portforward.k8s.io") as client:
        stream = client.open(streamtype="error", port="80", requestid="0")  # half of a pair
        assert client.until_fin(stream) == {stream: b""}  # reset
    with Command(exec_url(pods, container_id, "sleep", "7373"), "stdout") as client:
        assert client.ended()  # idle
    with WebSocket(exec_url(pods, container_id, "sleep", "7373"), V4) as socket:
        assert socket.message() == b"\x01"
        assert socket.message() is None
    until(
        lambda: b"7373" not in pods.cri.exec(container_id, "ps", "-o", "args").stdout, "their end"
    )
    script = "for i in 1 2 3 4 5; do echo $i; sleep 1; done"
    with Command(exec_url(pods, container_id, "sh", "-c", script), "stdout") as client:
        assert client.result()[0].split() == b"1 2 3 4 5".split()  # not idle


def certificate(directory: Path, name: str) -> None:
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 "
        f"-subj /CN={name} -addext subjectAltName=DNS:localhost,IP:127.0.0.1 "
        f"-keyout {directory}/new.key -out {directory}/new.pem"
    )
    subprocess.run(command.split(), check=True, capture_output=True)
    for kind in ("key", "pem"):
        (directory / f"new.{kind}").rename(directory / f"tls.{kind}")


def test_tls_with_a_certificate_that_is_renewed(
    configured: None, pods: Pods, tmp_path: Path
) -> None:
    certificate(tmp_path, "first")
    pods.cri.close()
    pods.cri = agent.start(
        f'[streaming]\naddress = "0.0.0.0"\ntls_cert = "{tmp_path}/tls.pem"\n'
        f'tls_key = "{tmp_path}/tls.key"\n'
    )
    container_id = pods.running()
    for name in ("first", "second"):
        certificate(tmp_path, name)
        url = exec_url(pods, container_id, "echo", "hello")
        assert urlsplit(url).scheme == "https"
        assert urlsplit(url).hostname == "127.0.0.1"
        tls = ssl.create_default_context(cafile=str(tmp_path / "tls.pem"))
        with connect(url, tls=tls) as connection:
            assert ((("commonName", name),),) == connection.getpeercert()["subject"]  # type: ignore[attr-defined]
            client = Spdy(url, connection=connection)
            streams = [client.open(streamtype=kind) for kind in ("error", "stdout")]
            assert client.until_fin(*streams)[streams[1]] == b"hello\n"
    (tmp_path / "tls.pem").write_text("none")  # the last good one stays
    with WebSocket(exec_url(pods, container_id, "echo", "hello"), V4, tls=tls) as socket:  # type: ignore[possibly-undefined]
        assert socket.channels()[1] == b"hello\n"
    certificate(tmp_path, "third")
    pem, key = tmp_path / "tls.pem", tmp_path / "tls.key"
    tls_files = ["--tls-ca", pem, "--tls-cert", pem, "--tls-key", key]  # it wants one of its own
    for transport in ("spdy", "websocket"):
        command = ["crictl", "exec", "--transport", transport, *tls_files]
        done = subprocess.run(
            [*command, container_id, "echo", "hi"],  # type: ignore[list-item]
            capture_output=True,
            check=False,
        )
        assert done.stdout == b"hi\n", done.stderr


@pytest.mark.parametrize(
    ("keys", "version", "suite"),
    [
        ('tls_min_version = "1.3"', "", ""),
        (
            'tls_cipher_suites = ["TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384"]',
            "TLSv1.2",
            "ECDHE-ECDSA-AES256-GCM-SHA384",
        ),
    ],
    ids=["version", "suites"],
)
def test_the_floor_of_tls(
    configured: None, pods: Pods, tmp_path: Path, keys: str, version: str, suite: str
) -> None:
    certificate(tmp_path, "one")
    pods.cri.close()
    pods.cri = agent.start(
        f'[streaming]\ntls_cert = "{tmp_path}/tls.pem"\ntls_key = "{tmp_path}/tls.key"\n{keys}\n'
    )
    container_id = pods.running()
    url = exec_url(pods, container_id, "echo", "hello")
    old, new = (ssl.create_default_context(cafile=str(tmp_path / "tls.pem")) for _ in range(2))
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    if version:
        with connect(url, tls=old) as connection:
            assert isinstance(connection, ssl.SSLSocket)
            assert (connection.version(), connection.cipher()[0]) == (version, suite)  # type: ignore[index]
    else:
        with pytest.raises(ssl.SSLError), connect(url, tls=old):
            pass
    with connect(url, tls=new) as connection:
        assert isinstance(connection, ssl.SSLSocket)
        assert connection.version() == "TLSv1.3"


@pytest.mark.parametrize("address", ["::1", "::", "0.0.0.0"])
def test_urls_name_a_host_that_can_be_reached(configured: None, pods: Pods, address: str) -> None:
    pods.cri.close()
    pods.cri = agent.start(f'[streaming]\naddress = "{address}"\n')
    container_id = pods.running()
    url = exec_url(pods, container_id, "echo", "hello")
    assert urlsplit(url).hostname == ("::1" if ":" in address else "127.0.0.1")
    with Command(url, "stdout") as command:
        assert command.result()[0] == b"hello\n"


def test_urls_name_the_configured_host(configured: None, pods: Pods) -> None:
    pods.cri.close()
    pods.cri = agent.start('[streaming]\naddress = "127.0.0.2"\nurl_host = "localhost"\n')
    container_id = pods.running()
    assert urlsplit(exec_url(pods, container_id)).hostname == "localhost"


def test_a_refusal_is_no_upgrade_for_websockets_either(pods: Pods) -> None:
    container_id = pods.running()
    with pytest.raises(Refused) as caught:
        WebSocket(exec_url(pods, container_id) + "x", V4)
    assert caught.value.status == 404
