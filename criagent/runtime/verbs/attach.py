# SPDX-License-Identifier: Apache-2.0
"""Attach: clients of the monitors of running containers.

conmon takes the leaving of any client for the end of a stdin that is open once. Those who only look
on at such a container share one connection, which stays until the container exits.
"""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial
from pathlib import Path

from criagent.base.errors import TimedOutError, WrongStateError
from criagent.base.single_flight import SingleFlight
from criagent.model.container import Container
from criagent.runtime.container.running import running
from criagent.runtime.node.paths import RuntimePaths
from criagent.runtime.oci import conmon_control, conmon_socket
from criagent.runtime.oci.conmon_socket import MonitorConnection, TooSlow
from criagent.store.containers import ContainerStore

_CLOSE_S = 1.0


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
            await conmon_control.send(self._control, line.encode())

    def close(self) -> None:
        """Disconnect; idempotent."""
        self._connection.leave(self._output)
        if not self._shared:
            self._connection.depart()


class Attacher:
    """Connects clients to running containers."""

    def __init__(self, *, store: ContainerStore, paths: RuntimePaths) -> None:
        self._store = store
        self._paths = paths
        self._open: set[MonitorConnection] = set()
        self._shared: dict[str, MonitorConnection] = {}  # of those who look on, by container id
        self._sharing: SingleFlight[str, MonitorConnection] = SingleFlight()

    def check(self, container_id: str) -> Container:
        """The running container. Raises NotFoundError, WrongStateError."""
        return running(self._store, container_id)

    async def connect(self, container_id: str, *, stdin: bool) -> Attachment:
        """A client of a running container's monitor; one without `stdin` only reads.

        Raises what `check` raises, UnavailableError when the monitor accepts none for five seconds.
        """
        container = self.check(container_id)
        control = self._paths.container(container.id) / "ctl"
        if stdin or not (container.spec.stdin and container.spec.stdin_once):
            return Attachment(await self._connected(container), control, shared=False)
        connection = self._shared.get(container.id)
        if connection is None:
            share = partial(self._share, container)
            connection = await self._sharing.join(container.id, share, name="attach")
        return Attachment(connection, control, shared=True)

    async def close(self) -> None:
        """End all connections, when the daemon ends: in order, but within a second."""
        for connection in list(self._open):  # one that the monitor knows of goes at once
            connection.depart()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_S):
                await asyncio.gather(*(connection.closed.wait() for connection in self._open))
        for connection in list(self._open):
            connection.close()

    async def _share(self, container: Container) -> MonitorConnection:
        connection = self._shared[container.id] = await self._connected(container)
        return connection

    async def _connected(self, container: Container) -> MonitorConnection:
        def ended() -> None:
            self._open.discard(connection)
            if self._shared.get(container.id) is connection:
                del self._shared[container.id]

        path = self._paths.container(container.id) / "attach"
        connection = MonitorConnection(await conmon_socket.connected(path, container.id), ended)
        self._open.add(connection)
        return connection
