# SPDX-License-Identifier: Apache-2.0
"""Brings rows and kernel back into agreement when the daemon starts.

Assumptions: every kernel object of this agent is named by an id that has a row, unless its row was
lost; a row of another boot has no living object; containers and their monitors kept running.

Each object is handled alone, under a time limit. One that cannot be handled is logged and skipped,
never fatal; an unfinished one is then listed, so that the kubelet removes it. Containers without a
row are ended first, objects without a row are removed last. Until then, calls are refused.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import structlog

from criagent.model.container import Container
from criagent.model.sandbox import Sandbox, SandboxId
from criagent.net.pod_network import Networks
from criagent.runtime.node.clock import Clock
from criagent.runtime.recovery.containers import ContainerRecovery
from criagent.runtime.recovery.orphans import Orphans
from criagent.runtime.recovery.sandboxes import SandboxRecovery
from criagent.runtime.recovery.unknown_containers import UnknownContainers
from criagent.store.containers import ContainerStore
from criagent.store.sandboxes import SandboxStore

_ITEM_LIMIT_S = 10.0
_AT_ONCE = 32

R = TypeVar("R", Sandbox, Container)

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class Recovery:
    """Runs once, before the first call is served."""

    def __init__(
        self,
        *,
        sandboxes: SandboxStore,
        containers: ContainerStore,
        container_recovery: ContainerRecovery,
        sandbox_recovery: SandboxRecovery,
        unknown: UnknownContainers,
        orphans: Orphans,
        networks: Networks,
        clock: Clock,
    ) -> None:
        self._sandboxes = sandboxes
        self._containers = containers
        self._container_recovery = container_recovery
        self._sandbox_recovery = sandbox_recovery
        self._unknown = unknown
        self._orphans = orphans
        self._networks = networks
        self._clock = clock

    async def run(self) -> None:
        """Reconcile everything; afterwards each row is true.

        Raises AgentError when a container without a row cannot be ended: its files must stay.
        """
        self._raise_clock()
        await self._unknown.end()
        unfinished = [sandbox for sandbox in self._sandboxes.all() if not sandbox.visible]
        recovery = self._sandbox_recovery
        await self._recover_containers({sandbox.id for sandbox in unfinished})
        await _each("sandbox", unfinished, recovery.undo)  # one that cannot be undone is listed
        visible = [sandbox for sandbox in self._sandboxes.all() if sandbox.visible]
        await _each("sandbox", visible, recovery.recover)
        live = [sandbox for sandbox in self._sandboxes.all() if not sandbox.released_at_ns]
        await self._networks.reconcile(live)
        await self._orphans.sweep()
        log.info(
            "recovered",
            sandboxes=len(self._sandboxes.all()),
            containers=len(self._containers.all()),
        )

    async def _recover_containers(self, unfinished: set[SandboxId]) -> None:
        """Those of sandboxes whose run a crash cut short go with them (RestorePod)."""

        async def recover(container: Container) -> None:
            if container.sandbox_id in unfinished:
                await self._container_recovery.undo(container)
            else:
                await self._container_recovery.recover(container)

        await _each("container", self._containers.all(), recover)

    def _raise_clock(self) -> None:
        times = [sandbox.created_at_ns for sandbox in self._sandboxes.all()]
        times += [container.created_at_ns for container in self._containers.all()]
        self._clock.raise_floor(max(times, default=0))


async def _each(noun: str, objects: Sequence[R], handle: Callable[[R], Awaitable[None]]) -> None:
    gate = asyncio.Semaphore(_AT_ONCE)

    async def one(found: R) -> None:
        async with gate:
            try:
                async with asyncio.timeout(_ITEM_LIMIT_S):
                    await handle(found)
            except Exception as failure:
                log.exception("recovery_failed", object=noun, id=found.id, error=repr(failure))

    await asyncio.gather(*(one(found) for found in objects))
