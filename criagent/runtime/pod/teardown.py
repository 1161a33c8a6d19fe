# SPDX-License-Identifier: Apache-2.0
"""Removes a sandbox's kernel objects from any state, for Stop, Remove and recovery."""

from __future__ import annotations

import structlog

from criagent.base import faults
from criagent.base.errors import AgentError
from criagent.model.sandbox import Sandbox
from criagent.runtime.node.clock import Clock
from criagent.runtime.nri.door import Plugins
from criagent.runtime.pod.objects import SandboxObjects
from criagent.runtime.pod.transitions import SandboxTransitions
from criagent.store.sandboxes import SandboxStore

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class SandboxTeardown:
    """Each step is idempotent and finds its objects by the id."""

    def __init__(
        self,
        *,
        store: SandboxStore,
        transitions: SandboxTransitions,
        objects: SandboxObjects,
        plugins: Plugins,
        clock: Clock,
    ) -> None:
        self._store = store
        self._transitions = transitions
        self._objects = objects
        self._plugins = plugins
        self._clock = clock

    async def mark_stopped(self, sandbox: Sandbox) -> Sandbox:
        """Close the sandbox to new containers, for good."""
        if sandbox.stopped_at_ns:
            return sandbox
        return await self._transitions.apply(sandbox.id, stopped_at_ns=self._clock.now_ns())

    async def mark_lost(self, sandbox_id: str) -> bool:
        """List a sandbox whose undo failed as NOTREADY, so that the kubelet removes it.

        Returns whether it is listed. When the disk does not accept that either, the next
        RunPodSandbox of its name or the next start of the agent removes what is left.
        """
        sandbox = self._store.get(sandbox_id)
        if sandbox is None:
            return False
        facts = {"sandbox_id": sandbox.id, **sandbox.spec.metadata.facts}
        try:
            await self.mark_stopped(sandbox)
        except AgentError as error:
            log.error("sandbox_not_listed", reason=str(error), **facts)  # noqa: TRY400 - its text is enough
            return False
        log.warning("sandbox_left_for_removal", **facts)
        return True

    async def release(self, sandbox: Sandbox) -> Sandbox:
        """Remove holder, network and namespaces; the row stays, as NOTREADY."""
        sandbox = await self.mark_stopped(sandbox)
        if sandbox.released_at_ns:
            return sandbox
        if self._plugins.active:
            await self._plugins.sandbox_stopped(sandbox)
        await self._objects.remove_holder(sandbox)
        faults.reach("sandbox-stop:holder")
        await self._objects.detach(sandbox)
        faults.reach("sandbox-stop:network")
        await self._objects.remove_namespaces(sandbox.id)
        faults.reach("sandbox-stop:namespaces")
        sandbox = await self._transitions.apply(sandbox.id, released_at_ns=self._clock.now_ns())
        faults.reach("sandbox-stop:released")
        return sandbox

    async def erase(self, sandbox: Sandbox) -> None:
        """Remove everything, the row last."""
        if self._plugins.active:
            await self._plugins.sandbox_removed(sandbox)
        if not sandbox.released_at_ns:
            await self._objects.remove_holder(sandbox)
            await self._objects.detach(sandbox)
            await self._objects.remove_namespaces(sandbox.id)
        await self._objects.remove_files(sandbox.id)
        faults.reach("sandbox-remove:files")
        await self._store.delete(sandbox.id)
        faults.reach("sandbox-remove:row")
