# SPDX-License-Identifier: Apache-2.0
"""conmon's attach socket: packets, whose first byte names the stream of the rest.

conmon waits for a client that does not read, and with it the container and its log. So packets are
read at once; a client that falls behind by more than the buffer is disconnected.

And conmon (2.1.12) reads memory that it has freed, and may crash, when it fails to write to a
client before it has seen that client's end. So a client announces its end by an empty packet, and
its socket is read and kept open until conmon has read that: sending then fails with EPIPE (man 2
send).
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable
from pathlib import Path

from criagent.base.errors import UnavailableError, WrongStateError

_STDERR = 3  # 2 is stdout
_PACKET = 8193
_PACKETS_AT_ONCE = 32
_STDIN_PACKET = 8192
_BUFFER = 4 << 20
_CONNECT_LIMIT_S = 5.0
_CONNECT_PAUSE_S = 0.01
_FIRST_PAUSE_S, _LAST_PAUSE_S = 0.002, 1.0


class TooSlow(Exception):  # noqa: N818 - the reason that the client is given
    """The client did not read and was disconnected, so that the container need not wait for it."""


class Output:
    """A container's output on its way to one client."""

    def __init__(self) -> None:
        self.too_slow = False
        self._packets: deque[bytes] = deque()
        self._size = 0
        self._changed = asyncio.Event()
        self._ended = False

    async def read(self) -> tuple[bool, bytes] | None:
        """(is stderr, bytes), or None when the container's output has ended. Raises TooSlow."""
        while not self._packets:
            if self.too_slow:
                raise TooSlow
            if self._ended:
                return None
            self._changed.clear()
            await self._changed.wait()
        packet = self._packets.popleft()
        self._size -= len(packet)
        return packet[0] == _STDERR, packet[1:]

    def feed(self, packet: bytes) -> None:
        """Add a packet from conmon; one too many drops them all."""
        self._packets.append(packet)
        self._size += len(packet)
        if self._size > _BUFFER:
            self.too_slow = True
            self._packets.clear()
        self._changed.set()

    def end(self) -> None:
        """No more bytes will come."""
        self._ended = True
        self._changed.set()


class MonitorConnection:
    """One connection to a container's monitor and the clients that see what comes over it.

    `ended` is called once, when it is closed.
    """

    def __init__(self, connection: socket.socket, ended: Callable[[], object]) -> None:
        self._socket = connection
        self.closed = asyncio.Event()
        self._ended = ended
        self._ending = False
        self._departing = False
        self._outputs: set[Output] = set()
        asyncio.get_running_loop().add_reader(connection, self._readable)

    def join(self) -> Output:
        """The output from now on."""
        output = Output()
        if self.closed.is_set():
            output.end()
        else:
            self._outputs.add(output)
        return output

    def leave(self, output: Output) -> None:
        """`output` has no reader any more; idempotent."""
        self._outputs.discard(output)

    async def write(self, data: bytes) -> None:
        """Write to the container's stdin. Raises OSError when the monitor has ended."""
        loop = asyncio.get_running_loop()
        for at in range(0, len(data), _STDIN_PACKET):
            await loop.sock_sendall(self._socket, data[at : at + _STDIN_PACKET])

    def end_stdin(self) -> None:
        """End the input of this connection's client; idempotent."""
        if not self._ending:
            self._ending = True
            self._send_end(_FIRST_PAUSE_S)

    def depart(self) -> None:
        """Close it as soon as the monitor knows of the end; idempotent."""
        if self._departing:
            return
        self._departing = True
        self._outputs.clear()
        if self._ending:
            self._check_end(_FIRST_PAUSE_S)
        else:
            self.end_stdin()

    def close(self) -> None:
        """Close it at once; idempotent."""
        if self._socket.fileno() < 0:
            return
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()
        for output in self._outputs:
            output.end()
        self.closed.set()
        self._ended()

    def _send_end(self, pause_s: float) -> None:
        if self._socket.fileno() < 0:
            return
        try:
            self._socket.send(b"")
        except BlockingIOError:  # the container does not read its stdin
            later = min(2 * pause_s, _LAST_PAUSE_S)
            asyncio.get_running_loop().call_later(pause_s, self._send_end, later)
            return
        except OSError:
            pass  # the monitor knows, or has ended
        if self._departing:
            self._check_end(_FIRST_PAUSE_S)

    def _check_end(self, pause_s: float) -> None:
        """Close it once the monitor has taken the end; until then check again."""
        if self._socket.fileno() < 0:
            return
        try:
            self._socket.send(b"")
        except BlockingIOError:
            pass
        except OSError:
            self.close()
            return
        later = min(2 * pause_s, _LAST_PAUSE_S)
        asyncio.get_running_loop().call_later(pause_s, self._check_end, later)

    def _readable(self) -> None:
        for _ in range(_PACKETS_AT_ONCE):  # the loop comes back for more
            try:
                packet = self._socket.recv(_PACKET)
            except BlockingIOError:
                return
            except OSError:
                packet = b""
            if not packet:
                self.close()
                return
            for output in list(self._outputs):
                output.feed(packet)
                if output.too_slow:
                    self._outputs.discard(output)


async def connected(
    path: Path, container_id: str, *, limit_s: float = _CONNECT_LIMIT_S
) -> socket.socket:
    """A socket connected to the attach socket `path` of a container's monitor.

    conmon takes one client after the other, and at most ten wait: EAGAIN (man 2 connect). Raises
    WrongStateError when there is no monitor, UnavailableError when it takes none for `limit_s`.
    """
    loop = asyncio.get_running_loop()
    until = loop.time() + limit_s
    while True:
        connection = socket.socket(
            socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        )
        try:
            connection.connect(str(path))
            return connection
        except BlockingIOError:
            connection.close()
        except OSError as exc:
            connection.close()
            raise WrongStateError(
                f"container {container_id} has just exited: {exc.strerror}"
            ) from None
        if loop.time() > until:
            raise UnavailableError(
                f"the monitor of container {container_id} accepts no more clients; "
                "attach again later"
            )
        await asyncio.sleep(_CONNECT_PAUSE_S)
