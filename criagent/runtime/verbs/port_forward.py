# SPDX-License-Identifier: Apache-2.0
"""PortForward: sockets created inside a pod's network namespace, only to its localhost."""

from __future__ import annotations

import asyncio
import dataclasses
import socket
from concurrent.futures import Executor

from criagent.base.aio import run_in
from criagent.base.errors import InvalidRequestError, NotFoundError, WrongStateError
from criagent.kernel.namespaces import in_netns
from criagent.model.sandbox import Sandbox, SandboxState
from criagent.runtime.pod.namespaces import PodNamespaces
from criagent.store.sandboxes import SandboxStore

_CONNECT_S = 10.0
_BUFFER = 256 << 10  # asyncio's reader stops at twice this


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PortForwarder:
    """Connects to ports of pods."""

    store: SandboxStore
    namespaces: PodNamespaces
    fs: Executor

    def check(self, sandbox_id: str) -> Sandbox:
        """The READY sandbox. Raises NotFoundError, WrongStateError."""
        sandbox = self.store.resolve(sandbox_id)
        if not sandbox.visible:
            raise NotFoundError(f"sandbox {sandbox.id!r} not found")
        if sandbox.state is not SandboxState.READY:
            raise WrongStateError(f"sandbox {sandbox.id} is not ready")
        return sandbox

    async def connect(
        self, sandbox_id: str, port: int
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection to the port on 127.0.0.1, or else ::1, of the pod.

        Raises InvalidRequestError for a port out of range, OSError when no process listens.
        """
        if not 0 < port < 65536:
            raise InvalidRequestError(f"port {port} is not between 1 and 65535")
        sandbox = self.check(sandbox_id)
        failure: OSError | None = None
        for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
            try:
                made = await self._socket(sandbox, family)
            except OSError as exc:  # a node without IPv6
                failure = failure or exc
                continue
            try:
                async with asyncio.timeout(_CONNECT_S):
                    await asyncio.get_running_loop().sock_connect(made, (host, port))
                return await asyncio.open_connection(sock=made, limit=_BUFFER)
            except (OSError, TimeoutError) as exc:
                made.close()
                failure = failure or exc  # TimeoutError is an OSError
            except BaseException:
                made.close()
                raise
        raise failure or OSError(f"port {port} cannot be reached")

    async def _socket(self, sandbox: Sandbox, family: socket.AddressFamily) -> socket.socket:
        made: list[socket.socket] = []

        def make() -> None:
            made.append(socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC))
            made[0].settimeout(0)

        if not sandbox.network_backend:
            make()
            return made[0]
        try:
            await run_in(self.fs, in_netns, self.namespaces.netns(sandbox), make)
        except BaseException:
            for one in made:  # the caller left while the thread was connecting
                one.close()
            raise
        return made[0]
