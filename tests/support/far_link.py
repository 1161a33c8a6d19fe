# SPDX-License-Identifier: Apache-2.0
"""A link with a round-trip time and a limited rate to a server on this machine, as a relay.

`python3 -m tests.support.far_link PORT TARGET RTT_MS MBIT RESETS` listens on PORT of 127.0.0.1. The
rate is that of one direction, for all connections together. Connecting takes a round trip, as the
handshake of TCP does; its slow start is left out. RESETS is the share of pieces from the server, of
at most 64 KiB, instead of which the client gets a reset.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator

_PIECE = 64 << 10
_IN_FLIGHT = 64  # pieces of one connection's direction: its window
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # struct linger: no time to send what is left


class _Reset(Exception):  # noqa: N818 - what the link does, not a failure
    """The connection is lost."""


class _Direction:
    """What one direction of the link carries, for all connections."""

    def __init__(self, delay_s: float, bytes_per_s: float, resets: float = 0.0) -> None:
        self._delay_s = delay_s
        self._rate = bytes_per_s
        self._resets = resets
        self._chance = random.Random(18)
        self._free_at = 0.0

    async def carry(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        """Deliver bytes of `source` to `sink`, each at its time, until the end of file."""
        flying: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_IN_FLIGHT)
        async with asyncio.TaskGroup() as group:
            group.create_task(_deliver(flying, sink))
            while True:
                piece = await source.read(_PIECE)
                now = asyncio.get_running_loop().time()
                self._free_at = max(now, self._free_at) + len(piece) / self._rate
                if piece and self._chance.random() < self._resets:
                    raise _Reset
                await flying.put((self._free_at + self._delay_s, piece))
                if not piece:
                    return


async def _deliver(flying: asyncio.Queue[tuple[float, bytes]], sink: asyncio.StreamWriter) -> None:
    while True:
        due, piece = await flying.get()
        await asyncio.sleep(max(0.0, due - asyncio.get_running_loop().time()))
        if not piece:
            sink.write_eof()
            return
        sink.write(piece)
        await sink.drain()


async def serve(port: int, target: int, rtt_s: float, bytes_per_s: float, resets: float) -> None:
    """Relay connections to `port` to the port `target`, for ever."""
    up = _Direction(rtt_s / 2, bytes_per_s)
    down = _Direction(rtt_s / 2, bytes_per_s, resets)

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(rtt_s)
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", target)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(up.carry(reader, far_writer))
                group.create_task(down.carry(far_reader, writer))
        except ExceptionGroup as ended:  # a side that hung up ends the connection
            if ended.subgroup(_Reset):
                own: socket.socket = writer.get_extra_info("socket")
                own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
                writer.transport.abort()
        far_writer.close()
        writer.close()

    async with await asyncio.start_server(relay, "127.0.0.1", port) as server:
        print("listening", flush=True)
        await server.serve_forever()


@contextlib.contextmanager
def far_link(
    port: int, target: int, rtt_ms: float, mbit: float, resets: float = 0.0
) -> Iterator[None]:
    """The relay as a process of its own, for the block."""
    arguments = [str(value) for value in (port, target, rtt_ms, mbit, resets)]
    with subprocess.Popen(
        [sys.executable, "-m", "tests.support.far_link", *arguments], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"listening\n"
        try:
            yield
        finally:
            process.kill()


if __name__ == "__main__":
    listen, server = map(int, sys.argv[1:3])
    delay, rate, lost = map(float, sys.argv[3:6])
    asyncio.run(serve(listen, server, delay / 1000, rate * 1e6 / 8, lost))
