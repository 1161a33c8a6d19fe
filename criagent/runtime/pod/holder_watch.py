# SPDX-License-Identifier: Apache-2.0
"""Watches holders of shared PID namespaces: a pod's processes end with its holder."""

from __future__ import annotations

import asyncio
import contextlib
import os

import structlog

from criagent.base.aio import supervised
from criagent.base.errors import NotFoundError
from criagent.kernel import process
from criagent.model.sandbox import Sandbox
from criagent.runtime.pod.teardown import SandboxTeardown
from criagent.store.sandboxes import SandboxStore

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class HolderWatch:
    """One pidfd per holder on the event loop; the sandbox becomes NOTREADY when the holder ends."""

    def __init__(self, store: SandboxStore, teardown: SandboxTeardown) -> None:
        self._store = store
        self._teardown = teardown
        self._pidfds: dict[str, int] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def watch(self, sandbox: Sandbox) -> None:
        """Follow the holder of `sandbox`, if it has one, until it ends."""
        if sandbox.holder is None or sandbox.id in self._pidfds:
            return
        fd = process.open_pidfd(sandbox.holder)
        if fd is None:
            self._ended(sandbox.id)
            return
        self._pidfds[sandbox.id] = fd
        asyncio.get_running_loop().add_reader(fd, self._ended, sandbox.id)

    async def close(self) -> None:
        """Stop watching."""
        for sandbox_id in list(self._pidfds):
            self._forget(sandbox_id)
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _ended(self, sandbox_id: str) -> None:
        self._forget(sandbox_id)
        task = supervised(self._mark(sandbox_id), name=f"holder:{sandbox_id}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _mark(self, sandbox_id: str) -> None:
        sandbox = self._store.get(sandbox_id)
        if sandbox is not None and not sandbox.stopped_at_ns:
            log.warning("holder_died", sandbox_id=sandbox_id, **sandbox.spec.metadata.facts)
            with contextlib.suppress(NotFoundError):  # it was removed at the same time
                await self._teardown.mark_stopped(sandbox)

    def _forget(self, sandbox_id: str) -> None:
        fd = self._pidfds.pop(sandbox_id, None)
        if fd is not None:
            asyncio.get_running_loop().remove_reader(fd)
            os.close(fd)
