# SPDX-License-Identifier: Apache-2.0
"""Clients that flood the streaming server with the smallest frames, and who else is served."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest

from criagent.streaming.transport import spdy_frames as frames
from criagent.streaming.transport.spdy_frames import control_frame, data_frame, number
from tests.support.cri_client import Cri, api
from tests.support.node_state import agent_facts
from tests.support.pods import Pods
from tests.support.stream_client import Command, Spdy, WebSocket
from tests.support.waiting import until

pytestmark = pytest.mark.root

V5 = "v5.channel.k8s.io"
MORE_KB = 24_000
P99_S = 0.05
ASKED = 300
_MASK = b"\0\0\0\0"


def exec_url(pods: Pods, container_id: str, *command: str) -> str:
    request = api.ExecRequest(
        container_id=container_id, cmd=command or ["sleep", "5151"], stdin=True, stdout=True
    )
    return str(pods.cri.runtime.Exec(request, timeout=10).url)


def websocket(start: bytes, again: bytes) -> Callable[[Pods, str, ExitStack], Callable[[], None]]:
    def connected(pods: Pods, container_id: str, stack: ExitStack) -> Callable[[], None]:
        client = stack.enter_context(WebSocket(exec_url(pods, container_id), V5))
        client.socket.sendall(start)
        return sender(client.socket.sendall, again * (60_000 // len(again)))

    return connected


def spdy(frame: Callable[[int], bytes]) -> Callable[[Pods, str, ExitStack], Callable[[], None]]:
    def connected(pods: Pods, container_id: str, stack: ExitStack) -> Callable[[], None]:
        client = stack.enter_context(Command(exec_url(pods, container_id), "stdin", "stdout"))
        again = frame(client.streams["stdin"])
        return sender(client.socket.sendall, again * (60_000 // len(again)))

    return connected


def sender(send: Callable[[bytes], object], data: bytes) -> Callable[[], None]:
    def call() -> None:
        send(data)

    return call


FLOODS = {
    "WebSocket: fragments without a byte": websocket(b"\x02\x80" + _MASK, b"\x00\x80" + _MASK),
    "WebSocket: pings": websocket(b"", b"\x89\x80" + _MASK),
    "WebSocket: pongs": websocket(b"", b"\x8a\x80" + _MASK),
    "WebSocket: messages without a byte": websocket(b"", b"\x82\x80" + _MASK),
    "WebSocket: stdin of one byte": websocket(b"", b"\x82\x82" + _MASK + b"\0x"),
    "WebSocket: sizes": websocket(b"", b"\x82\x83" + _MASK + b"\x04{}"),
    "SPDY: data of one byte": spdy(lambda stream: data_frame(stream, b"x")),
    "SPDY: data without a byte": spdy(lambda stream: data_frame(stream, b"")),
    "SPDY: pings": spdy(lambda _: control_frame(frames.PING, number(1))),
    "SPDY: windows": spdy(lambda s: control_frame(frames.WINDOW_UPDATE, number(s) + number(1))),
}


@contextmanager
def flooding(calls: list[Callable[[], None]]) -> Iterator[None]:
    """Each of these again and again until the block ends or the server has had enough of it."""
    over = threading.Event()

    def run(call: Callable[[], None]) -> None:
        while not over.is_set():
            try:
                call()
            except OSError:
                return

    threads = [threading.Thread(target=run, args=(call,), daemon=True) for call in calls]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()


def p99_s(cri: Cri) -> float:
    """What 99 of 100 lists took at most."""
    took = []
    for _ in range(ASKED):
        began = time.perf_counter()
        cri.containers()
        took.append(time.perf_counter() - began)
    return sorted(took)[ASKED * 99 // 100]


def best_p99_s(cri: Cri) -> float:
    """Of three rounds: a machine that is busy with others spoils one, a flood all of them."""
    return min(p99_s(cri) for _ in range(3))


@pytest.mark.parametrize(
    ("flood", "clients"),
    [
        *((name, 1) for name in FLOODS),
        ("WebSocket: stdin of one byte", 5),
        ("SPDY: data of one byte", 5),
    ],
)
def test_a_flood_leaves_the_node_its_answers_and_its_memory(
    pods: Pods, flood: str, clients: int
) -> None:
    container_id = pods.running()
    before = agent_facts()
    with ExitStack() as stack:
        calls = [FLOODS[flood](pods, container_id, stack) for _ in range(clients)]
        for client in calls:
            client()  # the first ones before anybody is asked
        with flooding(calls):
            took_s = best_p99_s(pods.cri)
            probe = pods.cri.exec(container_id, "echo", "well")
            more_kb = agent_facts()["rss_kb"] - before["rss_kb"]
            stack.close()
    assert probe.stdout == b"well\n"
    assert more_kb < MORE_KB
    assert took_s < P99_S
    # The kernel has taken megabytes of one-byte frames for the agent, which come before the end.
    until(lambda: agent_facts()["fds"] <= before["fds"], "descriptors closed", 120)


def test_a_typist_is_heard_while_another_client_floods(pods: Pods) -> None:
    container_id = pods.running()
    with ExitStack() as stack:
        calls = [FLOODS["WebSocket: pings"](pods, container_id, stack)]
        with (
            flooding(calls),
            Command(exec_url(pods, container_id, "cat"), "stdin", "stdout") as typist,
        ):
            for number_ in range(20):
                typist.send(typist.streams["stdin"], b"%d\n" % number_)
                assert echoed(typist) == b"%d\n" % number_
            stack.close()


def echoed(client: Spdy) -> bytes:
    while (frame := client.frame()) is not None:
        if frame.kind == 0 and frame.payload:
            return frame.payload
    raise EOFError


def test_a_process_that_writes_without_end_leaves_the_node_its_answers(pods: Pods) -> None:
    container_id = pods.running()
    stopped = threading.Event()

    def drain(client: Command) -> None:
        while not stopped.is_set() and client.socket.recv(1 << 20):
            pass

    url = exec_url(pods, container_id, "sh", "-c", "while :; do echo x; done")
    with Command(url, "stdin", "stdout") as client:
        reader = threading.Thread(target=drain, args=(client,), daemon=True)
        reader.start()
        took_s = best_p99_s(pods.cri)
        stopped.set()
        reader.join()
    assert took_s < P99_S
