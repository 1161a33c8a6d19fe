# SPDX-License-Identifier: Apache-2.0
"""Hostile clients of the streaming server: connections end, and memory stays where it was."""

from __future__ import annotations

import os
import socket
import struct
import zlib
from collections.abc import Callable

import pytest

from criagent.streaming.transport import spdy_frames as frames
from criagent.streaming.transport.spdy_frames import DICTIONARY, control_frame, data_frame, number
from tests.support.cri_client import api
from tests.support.node_state import agent_facts
from tests.support.pods import Pods
from tests.support.stream_client import V4, Spdy, WebSocket
from tests.support.waiting import until

pytestmark = pytest.mark.root

MORE_KB = 24_000  # of memory, whatever a client does


def exec_url(pods: Pods, container_id: str) -> str:
    request = api.ExecRequest(
        container_id=container_id, cmd=["sleep", "8181"], stdin=True, stdout=True
    )
    return str(pods.cri.runtime.Exec(request, timeout=10).url)


def bomb() -> bytes:
    plain = number(1) + number(1) + b"a" + number(200_000_000) + bytes(200_000_000)
    packer = zlib.compressobj(zdict=DICTIONARY)
    block = packer.compress(plain) + packer.flush(zlib.Z_SYNC_FLUSH)
    return control_frame(frames.SYN_STREAM, number(1) + number(0) + b"\0\0" + block[:900_000])


HOSTILE: dict[str, Callable[[Spdy], list[bytes]]] = {
    "header block bomb": lambda _: [bomb()],
    "header block of garbage": lambda _: [
        control_frame(frames.SYN_STREAM, number(1) + number(0) + b"\0\0" + b"garbage")
    ],
    "frame of 2^24 - 1 bytes": lambda _: [struct.pack("!II", 1, 0xFFFFFF)] + [bytes(1 << 20)] * 16,
    "control frame of 2^24 - 1 bytes": lambda _: [
        struct.pack("!II", 1 << 31 | 3 << 16 | 1, 0xFFFFFF)
    ],
    "a million resets": lambda _: (
        [control_frame(frames.RST_STREAM, number(1) + number(5)) * 10_000] * 100
    ),
    "a million pings": lambda _: [control_frame(frames.PING, number(1)) * 10_000] * 100,
    "a million settings": lambda _: [control_frame(frames.SETTINGS, number(0)) * 10_000] * 100,
    "window overflow": lambda c: [
        c.syn(1, {"streamtype": "stdin"}),
        control_frame(frames.WINDOW_UPDATE, number(1) + number(2**31 - 1)) * 2,
    ],
    "a stream's number again": lambda c: [c.syn(1, {}), c.syn(1, {})],
    "a number of the server's": lambda c: [c.syn(2, {})],
    "data of no stream": lambda _: [data_frame(9, b"x")],
    "another version": lambda _: [struct.pack("!II", 1 << 31 | 2 << 16 | 1, 0)],
    "another protocol": lambda _: [b"GET / HTTP/1.1\r\n\r\n"],
    "streams opened and reset": lambda c: [
        b"".join(
            c.syn(stream, {"streamtype": "data"})
            + control_frame(frames.RST_STREAM, number(stream) + number(5))
            for stream in range(start, start + 4000, 2)
        )
        for start in range(1, 100_001, 4000)
    ],
}


@pytest.mark.parametrize("attack", HOSTILE)
def test_hostile_frames_end_the_connection(pods: Pods, attack: str) -> None:
    container_id = pods.running()
    before = agent_facts()
    with Spdy(exec_url(pods, container_id), V4) as client:
        pieces = HOSTILE[attack](client)
        try:
            for piece in pieces:
                client.socket.sendall(piece)
        except ConnectionError:
            pass  # it is closed before we are done, as it should
        assert client.ended()
    assert agent_facts()["rss_kb"] < before["rss_kb"] + MORE_KB
    until(lambda: agent_facts()["fds"] <= before["fds"], "descriptors closed")
    assert pods.cri.exec(container_id, "true").exit_code == 0


def test_streams_without_end_are_refused_and_their_bytes_bounded(pods: Pods) -> None:
    container_id = pods.running()
    sandbox = next(item.pod_sandbox_id for item in pods.cri.containers() if item.id == container_id)
    url = pods.cri.runtime.PortForward(api.PortForwardRequest(pod_sandbox_id=sandbox)).url
    before = agent_facts()
    with Spdy(url, "portforward.k8s.io") as client:
        client.socket.settimeout(1)
        try:
            for number_ in range(6000):  # halves of pairs, each with data that nobody reads
                stream = client.open(streamtype="data", port="80", requestid=str(number_))
                client.send(stream, bytes(32768))
        except TimeoutError:
            pass  # it takes no more
        assert agent_facts()["rss_kb"] < before["rss_kb"] + MORE_KB
    until(lambda: agent_facts()["fds"] <= before["fds"], "descriptors closed")


def test_pings_of_a_client_that_reads_no_answer_cost_nothing(pods: Pods) -> None:
    container_id = pods.running()
    before = agent_facts()
    with WebSocket(exec_url(pods, container_id), V4) as client:
        client.socket.settimeout(1)
        frame = b"\x89" + bytes([0x80 | 125]) + bytes(4) + bytes(125)
        try:
            for _ in range(2000):
                client.socket.sendall(frame * 500)
        except TimeoutError:
            pass  # back-pressure
        assert agent_facts()["rss_kb"] < before["rss_kb"] + MORE_KB
    until(lambda: agent_facts()["fds"] <= before["fds"], "descriptors closed")


@pytest.mark.parametrize(
    "frame",
    [
        b"\x82\x05hello",  # not masked
        b"\x82\xff" + struct.pack("!Q", 1 << 40) + bytes(4),  # a message of a terabyte
        b"\xf2\x85" + bytes(9),  # reserved bits
        b"\x83\x80" + bytes(4),  # an unknown opcode
        b"\x80\x80" + bytes(4),  # continues nothing
        b"\x89\xfe\x01\x00" + bytes(260),  # a long ping
    ],
)
def test_hostile_websocket_frames_end_the_connection(pods: Pods, frame: bytes) -> None:
    container_id = pods.running()
    before = agent_facts()
    with WebSocket(exec_url(pods, container_id), V4) as client:
        client.socket.sendall(frame)
        data = b""
        while part := client.socket.recv(100):
            data += part
        assert data.removeprefix(b"\x82\x01\x01")[0] == 0x88  # a close frame
    assert agent_facts()["rss_kb"] < before["rss_kb"] + MORE_KB
    until(lambda: b"8181" not in pods.cri.exec(container_id, "ps", "-o", "args").stdout, "its end")
    until(lambda: agent_facts()["fds"] <= before["fds"], "descriptors closed")


def test_connections_that_say_nothing_hold_up_nobody(pods: Pods) -> None:
    container_id = pods.running()
    before = agent_facts()
    port = int(exec_url(pods, container_id).rsplit(":", 1)[1].split("/")[0])
    silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(200)]
    garbage = [socket.create_connection(("127.0.0.1", port)) for _ in range(50)]
    for one in garbage:
        one.sendall(os.urandom(3000))
    with Spdy(exec_url(pods, container_id), V4) as client:
        client.open(streamtype="error")
    for one in (*silent, *garbage):
        one.close()
    until(lambda: agent_facts()["fds"] <= before["fds"], "descriptors closed")
