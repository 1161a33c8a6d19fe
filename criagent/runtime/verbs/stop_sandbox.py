"""Stop and remove pod sandboxes: both succeed from any half-state, any number of times."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Coroutine
from functools import partial

import structlog

from criagent.base import faults
from criagent.base.aio import Owner, Owners
from criagent.base.errors import NotFoundError
from criagent.model.sandbox import Sandbox
from criagent.runtime.pod.teardown import SandboxTeardown
from criagent.runtime.verbs.create_container import ContainerCreator
from criagent.runtime.verbs.remove_container import ContainerRemover
from criagent.runtime.verbs.stop_container import ContainerStopper
from criagent.store.containers import ContainerStore
from criagent.store.sandboxes import SandboxStore

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SandboxStopper:
    """The StopPodSandbox and RemovePodSandbox verbs; one task per sandbox and verb."""

    store: SandboxStore
    containers: ContainerStore
    owners: Owners[None]
    creator: ContainerCreator
    stopper: ContainerStopper
    remover: ContainerRemover
    teardown: SandboxTeardown

    async def stop(self, sandbox_id: str) -> None:
        """Kill what runs in the sandbox and free its network; unknown ids are fine."""
        sandbox = self._find(sandbox_id)
        if sandbox is not None:
            await self._own(f"stop:{sandbox.id}", partial(self._stop, sandbox.id))

    async def remove(self, sandbox_id: str) -> None:
        """Stop the sandbox if needed, remove its containers and its row; unknown ids are fine."""
        sandbox = self._find(sandbox_id)
        if sandbox is not None:
            await self._own(f"remove:{sandbox.id}", partial(self._remove, sandbox.id))

    def _find(self, sandbox_id: str) -> Sandbox | None:
        try:
            sandbox = self.store.resolve(sandbox_id)
        except NotFoundError:
            return None
        return sandbox if sandbox.visible else None

    async def _own(
        self, key: str, work: Callable[[Owner[None]], Coroutine[object, object, None]]
    ) -> None:
        owner = self.owners.get(key) or self.owners.start(key, None, work)
        await self.owners.join(owner)

    async def _stop(self, sandbox_id: str, owner: Owner[None]) -> None:
        sandbox = self.store.get(sandbox_id)
        if sandbox is None:
            return
        released_before = bool(sandbox.released_at_ns)
        sandbox = await self.teardown.mark_stopped(sandbox)
        faults.reach("sandbox-stop:marked")
        owner.stage = "containers"
        await self.creator.cancel_all(sandbox.id)
        containers = self.containers.of_sandbox(sandbox.id)
        await asyncio.gather(*(self.stopper.stop(container.id, 0) for container in containers))
        faults.reach("sandbox-stop:containers")
        owner.stage = "network and namespaces"
        await self.teardown.release(sandbox)
        if not released_before:
            log.info("sandbox_stopped", sandbox_id=sandbox.id, **sandbox.spec.metadata.facts)

    async def _remove(self, sandbox_id: str, owner: Owner[None]) -> None:
        await self.stop(sandbox_id)
        owner.stage = "containers"
        containers = self.containers.of_sandbox(sandbox_id)
        await asyncio.gather(*(self.remover.remove(container.id) for container in containers))
        faults.reach("sandbox-remove:containers")
        sandbox = self.store.get(sandbox_id)
        if sandbox is not None:
            owner.stage = "files"
            await self.teardown.erase(sandbox)
            log.info("sandbox_removed", sandbox_id=sandbox.id, **sandbox.spec.metadata.facts)
