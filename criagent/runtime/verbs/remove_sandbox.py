# SPDX-License-Identifier: Apache-2.0
"""Remove a pod sandbox with its containers, from any half-state and any number of times."""

from __future__ import annotations

import asyncio
from functools import partial

import structlog

from criagent.base import faults
from criagent.base.aio import Owner
from criagent.model.sandbox import SandboxId
from criagent.runtime.container.keys import Act, Ending, Endings
from criagent.runtime.pod.teardown import SandboxTeardown
from criagent.runtime.verbs.remove_container import ContainerRemover
from criagent.runtime.verbs.stop_sandbox import SandboxStopper, listed
from criagent.store.containers import ContainerStore
from criagent.store.sandboxes import SandboxStore

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class SandboxRemover:
    """The RemovePodSandbox verb; one task per sandbox."""

    def __init__(
        self,
        *,
        store: SandboxStore,
        containers: ContainerStore,
        endings: Endings,
        stopper: SandboxStopper,
        remover: ContainerRemover,
        teardown: SandboxTeardown,
    ) -> None:
        self._store = store
        self._containers = containers
        self._endings = endings
        self._stopper = stopper
        self._remover = remover
        self._teardown = teardown

    async def remove(self, sandbox_id: str) -> None:
        """Stop the sandbox if needed, remove its containers and its row; unknown ids are fine."""
        sandbox = listed(self._store, sandbox_id)
        if sandbox is not None:
            key = Ending(Act.REMOVE_SANDBOX, sandbox.id)
            await self._endings.run(key, partial(self._remove, sandbox.id))

    async def _remove(self, sandbox_id: SandboxId, owner: Owner[Ending, None]) -> None:
        await self._stopper.stop(sandbox_id)
        owner.stage = "containers"
        containers = self._containers.of_sandbox(sandbox_id)
        await asyncio.gather(*(self._remover.remove(container.id) for container in containers))
        faults.reach("sandbox-remove:containers")
        sandbox = self._store.get(sandbox_id)
        if sandbox is not None:
            owner.stage = "files"
            await self._teardown.erase(sandbox)
            log.info("sandbox_removed", sandbox_id=sandbox.id, **sandbox.spec.metadata.facts)
