"""Attach: conmon's packet socket, whose packets name their stream by the first byte.

conmon waits for a client that does not read, and so do the container and its log. So packets are
read at once; a client that falls behind by more than the buffer is disconnected.

conmon also takes the leaving of any client for the end of a stdin that is open once. Clients
without stdin of such a container share one connection, which stays until the container exits.

And conmon (2.1.12) reads memory that it has freed, and may crash, when it fails to write to a
client before it has seen that client's end. So a client announces its end by an empty packet, and
its socket is read and kept open until conmon has read that: sending then fails with EPIPE (man 2
send).
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import socket
from collections import deque
from collections.abc import Callable
from pathlib import Path

from criagent.base.errors import TimedOutError, UnavailableError, WrongStateError
from criagent.model.container import Container
from criagent.runtime.container.running import running
from criagent.runtime.node.paths import RuntimePaths
from criagent.runtime.oci import conmon_control as monitor_control
from criagent.store.containers import ContainerStore

_STDERR = 3  # 2 is stdout
_PACKET = 8193
_PACKETS_AT_ONCE = 32
_STDIN_PACKET = 8192
_BUFFER = 4 << 20
_TAKEN_S = 5.0
_CLOSE_S = 1.0
_FIRST_LOOK_S, _LAST_LOOK_S = 0.002, 1.0


class TooSlow(Exception):  # noqa: N818 - the client's fault, reported as the reason
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
        """No more packets will come."""
        self._ended = True
        self._changed.set()


class MonitorConnection:
    """One connection to a container's monitor and the clients that share it."""

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
            self._tell_end(_FIRST_LOOK_S)

    def depart(self) -> None:
        """Close it as soon as the monitor knows of the end; idempotent."""
        if self._departing:
            return
        self._departing = True
        self._outputs.clear()
        if self._ending:
            self._look(_FIRST_LOOK_S)
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

    def _tell_end(self, pause_s: float) -> None:
        if self._socket.fileno() < 0:
            return
        try:
            self._socket.send(b"")
        except BlockingIOError:  # the container does not read its stdin
            later = min(2 * pause_s, _LAST_LOOK_S)
            asyncio.get_running_loop().call_later(pause_s, self._tell_end, later)
            return
        except OSError:
            pass  # the monitor knows, or has ended
        if self._departing:
            self._look(_FIRST_LOOK_S)

    def _look(self, pause_s: float) -> None:
        """Whether the monitor has read the end; otherwise check again."""
        if self._socket.fileno() < 0:
            return
        try:
            self._socket.send(b"")
        except BlockingIOError:
            pass
        except OSError:
            self.close()
            return
        later = min(2 * pause_s, _LAST_LOOK_S)
        asyncio.get_running_loop().call_later(pause_s, self._look, later)

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


class Attachment:
    """One client of a container's monitor."""

    def __init__(self, connection: MonitorConnection, control: Path, *, shared: bool) -> None:
        self._connection = connection
        self._control = control
        self._shared = shared
        self._output = connection.join()

    async def read(self) -> tuple[bool, bytes] | None:
        """(is stderr, bytes), or None when the container's output has ended. Raises TooSlow."""
        try:
            return await self._output.read()
        except TooSlow:
            self.close()  # the monitor must not wait for us
            raise

    async def write(self, data: bytes) -> None:
        """Write to the container's stdin. Raises OSError when the monitor has ended."""
        await self._connection.write(data)

    def end_stdin(self) -> None:
        """End the client's input."""
        self._connection.end_stdin()

    async def resize(self, width: int, height: int) -> None:
        """Set the size of the container's terminal; conmon accepts 1 to 1000."""
        line = f"1 {min(max(height, 1), 1000)} {min(max(width, 1), 1000)}\n"
        # A container that has just exited, or a monitor that hangs, needs no size.
        with contextlib.suppress(WrongStateError, TimedOutError):
            await monitor_control.send(self._control, line.encode())

    def close(self) -> None:
        """Disconnect; idempotent."""
        self._connection.leave(self._output)
        if not self._shared:
            self._connection.depart()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Attacher:
    """Connects clients to running containers."""

    store: ContainerStore
    paths: RuntimePaths
    shared: dict[str, MonitorConnection] = dataclasses.field(default_factory=dict)
    open: set[MonitorConnection] = dataclasses.field(default_factory=set)
    joining: asyncio.Lock = dataclasses.field(default_factory=asyncio.Lock)

    def check(self, container_id: str) -> Container:
        """The running container. Raises NotFoundError, WrongStateError."""
        return running(self.store, container_id)

    async def connect(self, container_id: str, *, stdin: bool) -> Attachment:
        """A client of a running container's monitor; one without `stdin` only reads.

        Raises what `check` raises, UnavailableError when the monitor accepts none for five seconds.
        """
        container = self.check(container_id)
        control = self.paths.container(container.id) / "ctl"
        if stdin or not (container.spec.stdin and container.spec.stdin_once):
            return Attachment(await self._joined(container, {}), control, shared=False)
        async with self.joining:
            if container.id not in self.shared:
                await self._joined(container, self.shared)
            return Attachment(self.shared[container.id], control, shared=True)

    async def close(self) -> None:
        """End all connections, when the daemon ends: in order, but within a second."""
        for connection in list(self.open):  # one that the monitor knows of goes at once
            connection.depart()
        waits = [asyncio.create_task(connection.closed.wait()) for connection in self.open]
        if waits:
            _, late = await asyncio.wait(waits, timeout=_CLOSE_S)
            for task in late:
                task.cancel()
        for connection in list(self.open):
            connection.close()

    async def _joined(
        self, container: Container, known: dict[str, MonitorConnection]
    ) -> MonitorConnection:
        def ended() -> None:
            self.open.discard(connection)
            known.pop(container.id, None)

        connection = MonitorConnection(await self._socket(container), ended)
        self.open.add(connection)
        known[container.id] = connection
        return connection

    async def _socket(self, container: Container) -> socket.socket:
        """conmon accepts clients one by one, and at most ten wait: EAGAIN (man 2 connect)."""
        path = str(self.paths.container(container.id) / "attach")
        until = asyncio.get_running_loop().time() + _TAKEN_S
        while True:
            connection = socket.socket(
                socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
            )
            try:
                connection.connect(path)
                return connection
            except BlockingIOError:
                connection.close()
            except OSError as exc:
                connection.close()
                raise WrongStateError(
                    f"container {container.id} has just exited: {exc.strerror}"
                ) from None
            if asyncio.get_running_loop().time() > until:
                raise UnavailableError(
                    f"the monitor of container {container.id} accepts no more clients; attach "
                    "again later"
                )
            await asyncio.sleep(0.01)
