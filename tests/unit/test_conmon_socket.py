# SPDX-License-Identifier: Apache-2.0
"""conmon's attach socket, with a packet socket whose other end stands for conmon."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from criagent.base.aio import settle
from criagent.base.errors import UnavailableError, WrongStateError
from criagent.runtime.oci.conmon_socket import MonitorConnection, TooSlow, connected

PACKETS = socket.AF_UNIX, socket.SOCK_SEQPACKET


class Monitor:
    """A connection, conmon's end of it, and how often the connection has said that it ended."""

    def __init__(self) -> None:
        ours, self.socket = socket.socketpair(*PACKETS)
        ours.setblocking(False)
        self.socket.setblocking(False)
        self.ends: list[None] = []
        self.connection = MonitorConnection(ours, lambda: self.ends.append(None))

    async def received(self) -> bytes:
        async with asyncio.timeout(20):
            return await asyncio.get_running_loop().sock_recv(self.socket, 1 << 16)

    async def closed(self) -> None:
        async with asyncio.timeout(20):
            await self.connection.closed.wait()
        assert len(self.ends) == 1


@pytest_asyncio.fixture
async def monitor() -> AsyncIterator[Monitor]:
    made = Monitor()
    yield made
    made.connection.close()
    made.socket.close()


async def test_output_is_told_apart_by_stream_and_ends_with_the_monitor(monitor: Monitor) -> None:
    output = monitor.connection.join()
    monitor.socket.send(b"\2out")
    monitor.socket.send(b"\3err")
    assert [await output.read(), await output.read()] == [(False, b"out"), (True, b"err")]
    reading = asyncio.create_task(output.read())
    await asyncio.sleep(0)
    monitor.socket.close()
    assert await reading is None
    await monitor.closed()


async def test_who_joins_later_sees_what_comes_from_then_on(monitor: Monitor) -> None:
    first = monitor.connection.join()
    monitor.socket.send(b"\2one")
    assert await first.read() == (False, b"one")
    second = monitor.connection.join()
    monitor.socket.send(b"\2two")
    assert [await first.read(), await second.read()] == [(False, b"two")] * 2
    monitor.connection.leave(first)
    monitor.connection.leave(first)
    monitor.socket.send(b"\2three")
    assert await second.read() == (False, b"three")


async def test_a_client_that_does_not_read_is_let_go_and_holds_up_nobody(monitor: Monitor) -> None:
    slow, quick = monitor.connection.join(), monitor.connection.join()
    packet = b"\2" + bytes(8192)
    for _ in range(600):  # more than 4 MiB
        await asyncio.get_running_loop().sock_sendall(monitor.socket, packet)
        assert await quick.read() == (False, packet[1:])
    with pytest.raises(TooSlow):
        await slow.read()


async def test_stdin_goes_in_packets_of_8_kib_and_its_end_is_an_empty_one(monitor: Monitor) -> None:
    writing = asyncio.create_task(monitor.connection.write(b"x" * 20_000))
    sizes = [len(await monitor.received()) for _ in range(3)]
    await writing
    monitor.connection.end_stdin()
    monitor.connection.end_stdin()
    assert (sizes, await monitor.received()) == ([8192, 8192, 3616], b"")
    with pytest.raises(BlockingIOError):
        monitor.socket.recv(1)


async def test_a_departing_client_stays_until_the_monitor_has_taken_its_end(
    monitor: Monitor,
) -> None:
    output = monitor.connection.join()
    monitor.connection.depart()
    monitor.connection.depart()
    monitor.socket.send(b"\2more")  # conmon has not seen the end, and must not fail to write
    assert await monitor.received() == b""
    assert not monitor.connection.closed.is_set()
    monitor.socket.shutdown(socket.SHUT_RD)
    await monitor.closed()
    assert not output.too_slow


async def test_one_that_ended_its_stdin_departs_as_well(monitor: Monitor) -> None:
    monitor.connection.end_stdin()
    assert await monitor.received() == b""
    monitor.socket.shutdown(socket.SHUT_RD)
    monitor.connection.depart()
    await monitor.closed()


async def test_the_end_waits_for_a_container_that_does_not_read(monitor: Monitor) -> None:
    writing = asyncio.create_task(monitor.connection.write(bytes(1 << 20)))
    await asyncio.sleep(0)
    await settle(writing)
    monitor.connection.depart()  # the socket is full
    got = 0
    while packet := await monitor.received():
        got += len(packet)
    assert got > 0
    monitor.socket.shutdown(socket.SHUT_RD)
    await monitor.closed()


# Connecting


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[tuple[socket.socket, Path]]:
    with socket.socket(*PACKETS) as made:
        path = tmp_path / "attach"
        made.bind(str(path))
        yield made, path


async def test_a_container_without_a_monitor_has_just_exited(tmp_path: Path) -> None:
    with pytest.raises(WrongStateError, match="container c has just exited: No such file"):
        await connected(tmp_path / "attach", "c")


async def test_a_monitor_whose_queue_is_full_is_asked_again(
    listener: tuple[socket.socket, Path],
) -> None:
    server, path = listener
    server.listen(0)
    first = await connected(path, "c")
    with pytest.raises(UnavailableError, match="monitor of container c accepts no more clients"):
        await connected(path, "c", limit_s=0)
    waiting = asyncio.create_task(connected(path, "c"))
    await asyncio.sleep(0)
    server.accept()[0].close()
    (await waiting).close()
    first.close()
