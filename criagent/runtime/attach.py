"""Attach: conmon's packet socket, its output told apart by the first byte of each packet.

conmon waits for a client that does not read, and with it the container and its log. So packets are
taken off at once; a client that falls behind by more than the buffer is let go.
"""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import os
import socket
from collections import deque
from pathlib import Path

from criagent.errors import WrongStateError
from criagent.model import Container, ContainerState
from criagent.runtime.paths import RuntimePaths
from criagent.store.containers import ContainerStore

_STDOUT, _STDERR = 2, 3
_PACKET = 8193
_STDIN_PACKET = 8192
_BUFFER = 4 << 20


class TooSlow(Exception):  # noqa: N818 - the client's fault, told as the reason
    """The client did not read; it was let go so that the container need not wait for it."""


class Attachment:
    """One client's connection to a container's monitor."""

    def __init__(self, connection: socket.socket, control: Path) -> None:
        self._socket = connection
        self._control = control
        self._packets: deque[bytes] = deque()
        self._size = 0
        self._changed = asyncio.Event()
        self._ended = False
        self._too_slow = False
        asyncio.get_running_loop().add_reader(connection, self._readable)

    async def read(self) -> tuple[bool, bytes] | None:
        """(is stderr, bytes), or None when the container's output has ended. Raises TooSlow."""
        while not self._packets:
            if self._too_slow:
                raise TooSlow
            if self._ended:
                return None
            self._changed.clear()
            await self._changed.wait()
        packet = self._packets.popleft()
        self._size -= len(packet)
        return packet[0] == _STDERR, packet[1:]

    async def write(self, data: bytes) -> None:
        """To the container's stdin. Raises OSError when the monitor is gone."""
        loop = asyncio.get_running_loop()
        for at in range(0, len(data), _STDIN_PACKET):
            await loop.sock_sendall(self._socket, data[at : at + _STDIN_PACKET])

    def end_stdin(self) -> None:
        """Nothing more comes from this client."""
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError as exc:
            if exc.errno != errno.ENOTCONN:
                raise

    def resize(self, width: int, height: int) -> None:
        """Tell the container's terminal its size; conmon takes 1 to 1000."""
        line = f"1 {min(max(height, 1), 1000)} {min(max(width, 1), 1000)}\n"
        try:
            fd = os.open(self._control, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return  # the container has just exited
        try:
            os.write(fd, line.encode())
        finally:
            os.close(fd)

    def close(self) -> None:
        """Leave; idempotent."""
        if self._socket.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()

    def _readable(self) -> None:
        while True:
            try:
                packet = self._socket.recv(_PACKET)
            except BlockingIOError:
                break
            except OSError:
                packet = b""
            if not packet:
                self._end()
                break
            self._packets.append(packet)
            self._size += len(packet)
            if self._size > _BUFFER:
                self._too_slow = True
                self._packets.clear()
                self._end()
                break
        self._changed.set()

    def _end(self) -> None:
        self._ended = True
        asyncio.get_running_loop().remove_reader(self._socket)
        if self._too_slow:
            self._socket.close()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Attacher:
    """Connects clients to running containers."""

    store: ContainerStore
    paths: RuntimePaths

    def check(self, container_id: str) -> Container:
        """The running container. Raises NotFoundError, WrongStateError."""
        row = self.store.resolve(container_id)
        if row.state is not ContainerState.RUNNING:
            raise WrongStateError(f"container {row.id} is {row.state.name.lower()}, not running")
        return row

    def connect(self, container_id: str) -> Attachment:
        """Connect to a running container's monitor. Raises what `check` raises."""
        row = self.check(container_id)
        bundle = self.paths.container(row.id)
        connection = socket.socket(
            socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        )
        try:
            connection.connect(str(bundle / "attach"))
        except OSError as exc:
            connection.close()
            raise WrongStateError(f"container {row.id} has just exited: {exc.strerror}") from None
        return Attachment(connection, bundle / "ctl")
