# SPDX-License-Identifier: Apache-2.0
"""Stop a pod sandbox, from any half-state and any number of times."""

from __future__ import annotations

import asyncio
from functools import partial

import structlog

from criagent.base import faults
from criagent.base.aio import Owner
from criagent.base.errors import NotFoundError
from criagent.model.sandbox import Sandbox, SandboxId
from criagent.runtime.container.keys import Act, ContainerCreations, Ending, Endings
from criagent.runtime.pod.teardown import SandboxTeardown
from criagent.runtime.verbs.stop_container import ContainerStopper
from criagent.store.containers import ContainerStore
from criagent.store.sandboxes import SandboxStore

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class SandboxStopper:
    """The StopPodSandbox verb; one task per sandbox."""

    def __init__(
        self,
        *,
        store: SandboxStore,
        containers: ContainerStore,
        making: ContainerCreations,
        endings: Endings,
        stopper: ContainerStopper,
        teardown: SandboxTeardown,
    ) -> None:
        self._store = store
        self._containers = containers
        self._making = making
        self._endings = endings
        self._stopper = stopper
        self._teardown = teardown

    async def stop(self, sandbox_id: str) -> None:
        """Kill what runs in the sandbox and free its network; unknown ids are fine."""
        sandbox = listed(self._store, sandbox_id)
        if sandbox is not None:
            key = Ending(Act.STOP_SANDBOX, sandbox.id)
            await self._endings.run(key, partial(self._stop, sandbox.id))

    async def _stop(self, sandbox_id: SandboxId, owner: Owner[Ending, None]) -> None:
        sandbox = self._store.get(sandbox_id)
        if sandbox is None:
            return
        released_before = bool(sandbox.released_at_ns)
        sandbox = await self._teardown.mark_stopped(sandbox)
        faults.reach("sandbox-stop:marked")
        owner.stage = "containers"
        await self._making.cancel(lambda name: name.sandbox_id == sandbox.id)
        containers = self._containers.of_sandbox(sandbox.id)
        await asyncio.gather(*(self._stopper.stop(container.id, 0) for container in containers))
        faults.reach("sandbox-stop:containers")
        owner.stage = "network and namespaces"
        await self._teardown.release(sandbox)
        if not released_before:
            log.info("sandbox_stopped", sandbox_id=sandbox.id, **sandbox.spec.metadata.facts)


def listed(store: SandboxStore, sandbox_id: str) -> Sandbox | None:
    """The sandbox; None for an unknown one, and for one that is being made or undone."""
    try:
        sandbox = store.resolve(sandbox_id)
    except NotFoundError:
        return None
    return sandbox if sandbox.visible else None
