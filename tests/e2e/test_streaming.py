# SPDX-License-Identifier: Apache-2.0
"""Exec, attach and port-forward by crictl, over both transports, and clients that misbehave."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit

import grpc
import pytest

from tests.support.cri_client import api
from tests.support.node_state import agent_facts
from tests.support.pods import Pods
from tests.support.waiting import until

pytestmark = [pytest.mark.root, pytest.mark.parametrize("transport", ["spdy", "websocket"])]


def crictl(*words: str, stdin: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["crictl", *words],
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        timeout=90,
        check=False,
    )


def test_output_errors_and_codes_arrive(pods: Pods, transport: str) -> None:
    container_id = pods.running()
    done = crictl(
        "exec", "--transport", transport, container_id, "sh", "-c", "echo out; echo err >&2; exit 3"
    )
    assert done.stdout == b"out\n"
    assert b"err\n" in done.stderr
    assert b"exit code 3" in done.stderr


def test_a_large_stdin_arrives_whole(pods: Pods, transport: str) -> None:
    container_id = pods.running()
    data = os.urandom(1 << 20) * 20
    done = crictl("exec", "--transport", transport, "-i", container_id, "sha256sum", stdin=data)
    assert done.stdout.split()[0].decode() == hashlib.sha256(data).hexdigest()


def test_a_large_output_arrives_whole(pods: Pods, transport: str) -> None:
    container_id = pods.running()
    done = crictl("exec", "--transport", transport, container_id, "seq", "1", "2000000")
    assert done.stdout == b"".join(b"%d\n" % n for n in range(1, 2_000_001))


def test_a_terminal_is_one(pods: Pods, transport: str) -> None:
    container_id = pods.running()
    command = f"crictl exec --transport {transport} -it {container_id} sh -c 'tty; exit 4'"
    done = subprocess.run(
        ["script", "-qec", command, "/dev/null"], capture_output=True, timeout=60, check=False
    )
    assert b"/dev/pts/" in done.stdout
    assert b"exit code 4" in done.stdout + done.stderr


def test_attach_shows_output_and_feeds_stdin(pods: Pods, transport: str) -> None:
    def stdin(config: api.ContainerConfig) -> None:
        config.stdin = True

    container_id = pods.running("sh", "-c", "while read x; do echo got $x; done", change=stdin)
    with subprocess.Popen(
        ["crictl", "attach", "--transport", transport, "-i", container_id],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as client:
        assert client.stdin is not None
        assert client.stdout is not None
        client.stdin.write(b"one\ntwo\n")
        client.stdin.flush()
        assert [client.stdout.readline() for _ in range(2)] == [b"got one\n", b"got two\n"]
        client.kill()
    assert pods.cri.status(container_id).state == api.CONTAINER_RUNNING
    assert pods.log(container_id) == "got one\ngot two\n"


@contextmanager
def forwarded(transport: str, sandbox: str, port: int) -> Iterator[int]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        local = probe.getsockname()[1]
    with subprocess.Popen(
        ["crictl", "port-forward", "--transport", transport, sandbox, f"{local}:{port}"],
        stdout=subprocess.PIPE,
    ) as client:
        assert client.stdout is not None
        assert b"Forwarding" in client.stdout.readline()
        yield local
        client.kill()


@pytest.mark.parametrize("host_network", [False, True])
def test_ports_are_forwarded_many_at_once(pods: Pods, transport: str, host_network: bool) -> None:
    def network(config: api.PodSandboxConfig) -> None:
        if host_network:
            config.linux.security_context.namespace_options.network = api.NODE

    sandbox = pods.sandbox(network)
    script = "mkdir /www; seq 1 20000 > /www/index.html; exec httpd -f -p 7800 -h /www"
    container_id = pods.running("sh", "-c", script, pod=sandbox)
    # crictl gives up for good at the first connection that is refused
    until(lambda: b":7800 " in pods.cri.exec(container_id, "netstat", "-ltn").stdout, "the server")
    page = b"".join(b"%d\n" % n for n in range(1, 20001))
    with forwarded(transport, sandbox[0], 7800) as port:
        url = f"http://127.0.0.1:{port}/"
        assert all(_fetched(url) == page for _ in range(50))


def test_a_closed_port_is_told(pods: Pods, transport: str) -> None:
    sandbox, _ = pods.sandbox()
    with forwarded(transport, sandbox, 7801) as port:
        assert _fetched(f"http://127.0.0.1:{port}/") == b""


def test_a_client_that_leaves_takes_its_command_along(pods: Pods, transport: str) -> None:
    container_id = pods.running()
    with subprocess.Popen(
        [
            "crictl",
            "exec",
            "--transport",
            transport,
            container_id,
            "sh",
            "-c",
            "echo up; sleep 7171",
        ],
        stdout=subprocess.PIPE,
    ) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == b"up\n"
        client.kill()
    until(lambda: b"7171" not in pods.cri.exec(container_id, "ps", "-o", "args").stdout, "its end")


def test_aborted_sessions_leave_the_agent_as_it_was(pods: Pods, transport: str) -> None:
    container_id = pods.running()
    crictl("exec", "--transport", transport, container_id, "true")
    before = agent_facts()
    for _ in range(10):
        clients = [
            subprocess.Popen(
                ["crictl", "exec", "--transport", transport, container_id, "sleep", "7272"],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            for _ in range(4)
        ]
        for client in clients:
            client.kill()
            client.wait()
    until(lambda: agent_facts()["fds"] <= before["fds"] + 2, "descriptors closed")
    until(
        lambda: b"7272" not in pods.cri.exec(container_id, "ps", "-o", "args").stdout, "their end"
    )


def test_tokens_are_for_one_use_and_requests_must_upgrade(pods: Pods, transport: str) -> None:
    del transport
    container_id = pods.running()
    request = api.ExecRequest(container_id=container_id, cmd=["true"], stdout=True)
    url = pods.cri.runtime.Exec(request).url
    assert urlsplit(url).hostname == "127.0.0.1"
    assert _status(url) == 400  # no upgrade; and the token is used up
    assert _status(url) == 404
    assert _status(url.rpartition("/")[0] + "/guess") == 404
    assert _status(url.replace("/exec/", "/nothing/")) == 404
    for bad in (
        api.ExecRequest(container_id=container_id, cmd=["true"]),
        api.ExecRequest(container_id=container_id, stdout=True),
        api.ExecRequest(container_id=container_id, cmd=["x"], tty=True, stdout=True, stderr=True),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            pods.cri.runtime.Exec(bad)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_upgrades_without_a_common_protocol_are_refused(pods: Pods, transport: str) -> None:
    container_id = pods.running()
    request = api.ExecRequest(container_id=container_id, cmd=["true"], stdout=True)
    url = urlsplit(pods.cri.runtime.Exec(request).url)
    upgrade = "SPDY/3.1" if transport == "spdy" else "websocket"
    head = (
        f"POST {url.path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: {upgrade}\r\n"
        "X-Stream-Protocol-Version: v9.channel.k8s.io\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        "Sec-WebSocket-Protocol: v9.channel.k8s.io\r\n\r\n"
    )
    if transport == "websocket":
        head = head.replace("POST", "GET")
    with socket.create_connection((url.hostname, url.port), timeout=10) as client:
        client.sendall(head.encode())
        answer = client.recv(4096)
    assert answer.split()[1] == (b"403" if transport == "spdy" else b"400")
    if transport == "spdy":
        assert b"v4.channel.k8s.io" in answer


def _status(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=10) as response:
            return int(response.status)
    except HTTPError as error:
        error.close()
        return error.code


def _fetched(url: str) -> bytes:
    command = ["curl", "-s", "--max-time", "10", url]
    return subprocess.run(command, capture_output=True, check=False).stdout


def tail(log: Path) -> bytes:
    """Its last five bytes."""
    with log.open("rb") as file:
        file.seek(-min(5, log.stat().st_size), os.SEEK_END)
        return file.read(5)


def test_an_attached_client_that_does_not_read_holds_up_nobody(
    pods: Pods, transport: str, tmp_path: Path
) -> None:
    script = "while [ ! -e /go/go ]; do sleep 0.05; done; seq 1 3000000; echo end"
    container_id = pods.running(
        "sh",
        "-c",
        script,
        change=lambda c: c.mounts.add(container_path="/go", host_path=str(tmp_path)),
    )
    read, write = os.pipe()
    with subprocess.Popen(
        ["crictl", "attach", "--transport", transport, container_id],
        stdout=write,
        stderr=subprocess.DEVNULL,
    ) as client:
        (tmp_path / "go").touch()
        log = Path(pods.cri.status(container_id).log_path)
        until(lambda: tail(log) == b" end\n", "the whole log", 120)
        client.kill()
    os.close(read)
    os.close(write)
