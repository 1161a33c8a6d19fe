# SPDX-License-Identifier: Apache-2.0
"""Port-forward: many connections, resets, pods that do not read, localhost alone."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.cri_client import api
from tests.support.node_state import agent_facts
from tests.support.pods import Pods
from tests.support.stream_client import Spdy
from tests.support.waiting import until

pytestmark = pytest.mark.root


def forward_url(pods: Pods, sandbox: str, *ports: int) -> str:
    request = api.PortForwardRequest(pod_sandbox_id=sandbox, port=ports)
    return str(pods.cri.runtime.PortForward(request).url)


# An echo server on each address and port; "mute" ones take connections and never read.
SERVER = """
import asyncio, sys
async def echo(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()
async def mute(reader, writer):
    writer.transport.pause_reading()
async def main():
    for kind, host, port in zip(*[iter(sys.argv[1:])] * 3):
        call = {"echo": echo, "mute": mute}[kind]
        await asyncio.start_server(call, host, int(port), backlog=1000)
    print("up", flush=True)
    await asyncio.get_running_loop().create_future()
asyncio.run(main())
"""


@contextmanager
def serving(sandbox: str, *words: str) -> Iterator[int]:
    """A server in the pod's network namespace (the node's own without a sandbox); gives its pid."""
    space = ["nsenter", f"--net=/run/criagent/sandboxes/{sandbox}/ns/net"] if sandbox else []
    command = [*space, sys.executable, "-c", SERVER, *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == b"up\n"
        yield server.pid
        server.kill()


def pair(client: Spdy, port: int, number: int) -> tuple[int, int]:
    """Error and data streams of one connection."""
    common = {"port": str(port), "requestid": str(number)}
    return (
        client.open(fin=True, streamtype="error", **common),
        client.open(streamtype="data", **common),  # type: ignore[arg-type]
    )


def test_hundreds_of_connections_through_one(pods: Pods) -> None:
    sandbox, _ = pods.sandbox()
    before = agent_facts()
    with (
        serving(sandbox, "echo", "127.0.0.1", "7800"),
        Spdy(forward_url(pods, sandbox), "portforward.k8s.io") as client,
    ):
        pairs = [pair(client, 7800, number) for number in range(300)]
        sent = {data: os.urandom(2000) + bytes([data % 256]) * 3000 for _, data in pairs}
        for data, text in sent.items():
            client.send(data, text, fin=True)
        found = client.until_fin(*sent, *(error for error, _ in pairs))
        assert all(found[data] == text for data, text in sent.items())
        assert all(found[error] == b"" for error, _ in pairs)
        until(lambda: agent_facts()["fds"] <= before["fds"] + 1, "descriptors closed")
        for number in range(100):
            client.send(pair(client, 7800, 1000 + number)[1], b"still here")
    until(lambda: agent_facts()["fds"] <= before["fds"], "descriptors closed")


def connections(pid: int) -> int:
    """Sockets of a process, its listening ones and pipes left out."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def test_a_reset_ends_its_connection_alone(pods: Pods) -> None:
    sandbox, _ = pods.sandbox()
    with (
        serving(sandbox, "echo", "127.0.0.1", "7800") as server,
        Spdy(forward_url(pods, sandbox), "portforward.k8s.io") as client,
    ):
        before = connections(server)
        _, one = pair(client, 7800, 1)
        _, other = pair(client, 7800, 2)
        for stream in (one, other):
            client.send(stream, b"hello")
        until(lambda: connections(server) == before + 2, "two connections")
        client.reset(one)
        until(lambda: connections(server) == before + 1, "the end of one")
        client.send(other, b" again", fin=True)
        assert client.until_fin(other) == {other: b"hello again"}


def test_a_connection_whose_pod_does_not_read_holds_back_no_other(pods: Pods) -> None:
    sandbox, _ = pods.sandbox()
    before = agent_facts()["rss_kb"]
    with (
        serving(sandbox, "mute", "127.0.0.1", "7801", "echo", "127.0.0.1", "7800"),
        Spdy(forward_url(pods, sandbox), "portforward.k8s.io") as client,
    ):
        _, stuck = pair(client, 7801, 1)
        _, other = pair(client, 7800, 2)
        client.send(stuck, bytes(64 << 10))  # its window
        client.send(other, b"x" * 200_000, fin=True)
        assert client.until_fin(other) == {other: b"x" * 200_000}
        # One that keeps no window stops the connection, and is given up for that half a minute on.
        feeding = threading.Thread(target=client.send, args=(stuck, bytes(30 << 20)))
        feeding.start()
        _, third = pair(client, 7800, 3)
        client.send(third, b"hello", fin=True)
        client.socket.settimeout(50)
        assert client.until_fin(third) == {third: b"hello"}
        feeding.join()
        assert agent_facts()["rss_kb"] < before + 20_000


@pytest.mark.parametrize("host_network", [False, True])
def test_only_localhost_of_the_pod_is_reached(pods: Pods, host_network: bool) -> None:
    def network(config: api.PodSandboxConfig) -> None:
        if host_network:
            config.linux.security_context.namespace_options.network = api.NODE

    sandbox, _ = pods.sandbox(network)
    inside = "" if host_network else sandbox
    with (
        serving(inside, "echo", "::1", "7802", "echo", "127.0.0.1", "7803"),
        serving("", "echo", "127.0.0.1", "7804"),
        Spdy(forward_url(pods, sandbox), "portforward.k8s.io") as client,
    ):
        for number, port in enumerate((7802, 7803)):
            error, data = pair(client, port, number)
            client.send(data, b"hello", fin=True)
            assert client.until_fin(error, data) == {error: b"", data: b"hello"}
        if not host_network:  # the node's own localhost is not the pod's
            error, data = pair(client, 7804, 9)
            assert b"refused" in client.until_fin(error, data)[error]


def test_pairs_without_request_ids_are_told_by_their_numbers(pods: Pods) -> None:
    sandbox, _ = pods.sandbox()
    with (
        serving(sandbox, "echo", "127.0.0.1", "7800"),
        Spdy(forward_url(pods, sandbox), "portforward.k8s.io") as client,
    ):
        client.open(fin=True, streamtype="error", port="7800")
        data = client.open(streamtype="data", port="7800")
        client.send(data, b"hello", fin=True)
        assert client.until_fin(data) == {data: b"hello"}
        client.open(fin=True, streamtype="error", port="7800", requestid="a")
        again = client.open(fin=True, streamtype="error", port="7800", requestid="a")
        other = client.open(streamtype="bogus", port="7800", requestid="a")
        assert client.until_fin(again, other) == {again: b"", other: b""}
