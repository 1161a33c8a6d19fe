# SPDX-License-Identifier: Apache-2.0
"""Python's kubernetes package as a client: WebSockets by a program that none of us wrote."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator

import pytest
from kubernetes.client import Configuration
from kubernetes.stream import ws_client

from tests.support.cri_client import api
from tests.support.pods import Pods
from tests.support.waiting import until

pytestmark = [
    pytest.mark.root,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

OPEN: list[ws_client.WSClient] = []
V4 = {"sec-websocket-protocol": "v4.channel.k8s.io"}
V5 = {"sec-websocket-protocol": "v5.channel.k8s.io,v4.channel.k8s.io"}


@pytest.fixture(autouse=True)
def sockets() -> Iterator[None]:
    """Close what the package leaves open."""
    yield
    while OPEN:
        OPEN.pop().sock.shutdown()


def client(url: str, headers: dict[str, str], *, binary: bool = False) -> ws_client.WSClient:
    address = ws_client.get_websocket_url(url)
    made = ws_client.WSClient(Configuration(), address, headers, capture_all=True, binary=binary)
    OPEN.append(made)
    return made


def exec_url(pods: Pods, container_id: str, *words: str, **streams: bool) -> str:
    wanted = streams or {"stdout": True, "stderr": True}
    return str(
        pods.cri.runtime.Exec(api.ExecRequest(container_id=container_id, cmd=words, **wanted)).url
    )


@pytest.mark.parametrize(("headers", "protocol"), [(V4, "v4"), (V5, "v5")])
def test_exec_tells_output_and_exit_code(
    pods: Pods, headers: dict[str, str], protocol: str
) -> None:
    container_id = pods.running()
    for script, code in (("echo out; echo err >&2; exit 3", 3), ("echo out; echo err >&2", 0)):
        socket = client(exec_url(pods, container_id, "sh", "-c", script), headers)
        assert socket.subprotocol == f"{protocol}.channel.k8s.io"
        socket.run_forever(timeout=30)
        assert (socket.read_stdout(), socket.read_stderr()) == ("out\n", "err\n")
        assert socket.returncode == code


def test_a_call_gives_all_output(pods: Pods) -> None:
    container_id = pods.running()
    url = exec_url(pods, container_id, "seq", "1", "200000")
    socket = client(url, V4)
    socket.run_forever(timeout=30)
    assert socket.read_all() == "".join(f"{n}\n" for n in range(1, 200_001))


def test_stdin_in_one_message_and_its_half_close(pods: Pods) -> None:
    container_id = pods.running()
    data = os.urandom(8 << 20)
    socket = client(
        exec_url(pods, container_id, "sha256sum", stdin=True, stdout=True), V5, binary=True
    )
    socket.write_stdin(data)
    socket.close_channel(ws_client.STDIN_CHANNEL)
    socket.run_forever(timeout=60)
    assert socket.read_stdout().split()[0].decode() == hashlib.sha256(data).hexdigest()
    assert socket.returncode == 0


def test_a_terminal_and_its_size(pods: Pods) -> None:
    container_id = pods.running()
    url = exec_url(pods, container_id, "sh", tty=True, stdin=True, stdout=True)
    socket = client(url, V4)
    socket.write_channel(ws_client.RESIZE_CHANNEL, '{"Width":77,"Height":33}')
    socket.write_stdin("stty size; exit 5\n")
    socket.run_forever(timeout=30)
    assert "33 77" in socket.read_stdout()
    assert socket.returncode == 5


def test_attach_feeds_and_shows(pods: Pods) -> None:
    def stdin(config: api.ContainerConfig) -> None:
        config.stdin = True

    container_id = pods.running("sh", "-c", "while read x; do echo got $x; done", change=stdin)
    request = api.AttachRequest(container_id=container_id, stdin=True, stdout=True)
    socket = client(pods.cri.runtime.Attach(request).url, V4)
    socket.write_stdin("one\n")
    assert socket.readline_stdout(timeout=20) == "got one"
    socket.close()
    assert pods.cri.status(container_id).state == api.CONTAINER_RUNNING


def test_ports_are_forwarded_over_channels(pods: Pods) -> None:
    sandbox = pods.sandbox()
    serving = "while true; do nc -l -p 7800 -e sh -c 'read x; seq 1 50000; echo got $x'; done"
    pods.running("sh", "-c", serving, pod=sandbox)
    until(lambda: _listens(pods, sandbox[0]), "the server")
    request = api.PortForwardRequest(pod_sandbox_id=sandbox[0], port=[7800, 7801])
    url = str(pods.cri.runtime.PortForward(request).url)
    forward = ws_client.portforward_call(
        Configuration(), "GET", url, query_params=[("ports", "7800,7801")], headers=V4
    )
    first = forward.socket(7800)
    first.settimeout(20)
    first.sendall(b"ping\n")
    data = b""
    while not data.endswith(b"got ping\n"):
        part = first.recv(1 << 16)
        assert part, data[-100:]
        data += part
    assert data == b"".join(b"%d\n" % n for n in range(1, 50_001)) + b"got ping\n"
    until(lambda: forward.error(7801), "the closed port's error")
    assert "refused" in forward.error(7801)
    first.close()
    forward.socket(7801).close()
    until(lambda: not any("port forward" in t.name for t in threading.enumerate()), "its thread")
    forward.websocket.shutdown()


def _listens(pods: Pods, sandbox: str) -> bool:
    container_id = next(
        container_id.id
        for container_id in pods.cri.containers()
        if container_id.pod_sandbox_id == sandbox
    )
    return b":7800 " in pods.cri.exec(container_id, "netstat", "-ltn").stdout
