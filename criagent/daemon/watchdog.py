# SPDX-License-Identifier: Apache-2.0
"""The service manager's view: STATUS= with what runs, WATCHDOG=1 while CRI calls are answered.

man 3 sd_notify, sd_watchdog_enabled. Without NOTIFY_SOCKET nothing is done.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import grpc
import structlog

from criagent._proto import api_pb2, api_pb2_grpc
from criagent.daemon.service_notify import notify
from criagent.model.container import ContainerState
from criagent.model.sandbox import SandboxState
from criagent.store.containers import ContainerStore
from criagent.store.sandboxes import SandboxStore

_GATHER_S = 1.0  # changes within it are one status
_NO_ANSWER = {grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE}

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class ServiceStatus:
    """Keeps the STATUS= line of `systemctl status` up to date, from its construction on."""

    def __init__(self, sandboxes: SandboxStore, containers: ContainerStore) -> None:
        self._sandboxes = sandboxes
        self._containers = containers
        self._sent = ""
        self._planned = False
        if os.environ.get("NOTIFY_SOCKET"):
            sandboxes.listeners.append(self._changed)
            containers.listeners.append(self._changed)
            self.send()

    def send(self) -> None:
        """Send it if it changed."""
        self._planned = False
        ready = sum(
            one.visible and one.state is SandboxState.READY for one in self._sandboxes.all()
        )
        running = sum(
            one.visible and one.state is ContainerState.RUNNING for one in self._containers.all()
        )
        text = f"serving; pods ready: {ready}, containers running: {running}"
        if text != self._sent:
            notify(f"STATUS={text}")
            self._sent = text

    def _changed(self, _id: str, _row: object) -> None:
        if not self._planned:
            self._planned = True
            asyncio.get_running_loop().call_later(_GATHER_S, self.send)


def interval_s() -> float:
    """Half the time within which the service manager wants to hear of us; 0 = it does not."""
    wanted, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if not wanted.isdigit() or (pid and pid != str(os.getpid())):
        return 0.0
    return int(wanted) / 2e6


async def watch(socket: Path, every_s: float, on_failure: Callable[[], None]) -> None:
    """Call ourselves over the socket at intervals; each answer is reported as WATCHDOG=1.

    Any status but UNAVAILABLE is an answer. `on_failure` is called when there is none, before the
    service manager ends the daemon. Never returns.
    """
    while True:
        try:
            await _call(socket, every_s)
        except grpc.aio.AioRpcError as error:
            if error.code() in _NO_ANSWER:
                log.error("watchdog_call_failed", error=error.details())  # noqa: TRY400 - text
                on_failure()
                await asyncio.sleep(every_s)
                continue
        notify("WATCHDOG=1")
        await asyncio.sleep(every_s)


async def _call(socket: Path, limit_s: float) -> None:
    """A short list over a connection of its own: a socket whose file is gone is found, too."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(f"unix:{socket}", options=options) as channel:
        stub = api_pb2_grpc.RuntimeServiceStub(channel)
        nothing = api_pb2.PodSandboxFilter(id="0" * 64)
        request = api_pb2.ListPodSandboxRequest(filter=nothing)
        await stub.ListPodSandbox(request, timeout=limit_s)
