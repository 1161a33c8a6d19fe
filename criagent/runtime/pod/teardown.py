"""Take a sandbox's kernel objects away from any half-state, for Stop, Remove and recovery."""

from __future__ import annotations

import dataclasses

import structlog

from criagent.base import faults
from criagent.base.errors import AgentError
from criagent.model import Sandbox
from criagent.net.pod_network import Networks
from criagent.runtime.node.clock import Clock
from criagent.runtime.pod.files import PodFileWriter
from criagent.runtime.pod.namespaces import PodNamespaces
from criagent.runtime.pod.pid_holder import SandboxHolder
from criagent.store.sandboxes import SandboxStore

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SandboxTeardown:
    """Each step is idempotent and finds its objects from the id."""

    store: SandboxStore
    networks: Networks
    namespaces: PodNamespaces
    files: PodFileWriter
    holder: SandboxHolder
    clock: Clock

    async def mark_stopped(self, box: Sandbox) -> Sandbox:
        """Close the sandbox to new containers, for good."""
        if box.stopped_at_ns:
            return box
        box = dataclasses.replace(box, stopped_at_ns=self.clock.now_ns())
        await self.store.update(box)
        return box

    async def mark_lost(self, sandbox_id: str) -> bool:
        """List a sandbox whose undo failed as NOTREADY, so that the kubelet comes back for it.

        Returns whether it is listed. When the disk does not take that either, the next
        RunPodSandbox of its name or the next start of the agent removes what is left.
        """
        box = self.store.get(sandbox_id)
        if box is None:
            return False
        facts = {"sandbox_id": box.id, **box.spec.metadata.facts}
        try:
            await self.mark_stopped(box)
        except AgentError as error:
            log.error("sandbox_not_listed", reason=str(error), **facts)  # noqa: TRY400 - its text
            return False
        log.warning("sandbox_kept_for_removal", **facts)
        return True

    async def detach(self, box: Sandbox) -> None:
        """Take the sandbox off its network; its addresses are free afterwards."""
        if box.network_backend:
            netns = self.namespaces.netns(box)
            await self.networks.for_row(box).detach(box, netns if netns.exists() else None)

    async def release(self, box: Sandbox) -> Sandbox:
        """Holder, network and namespaces go; the row stays, as NOTREADY."""
        box = await self.mark_stopped(box)
        if box.released_at_ns:
            return box
        await self.holder.remove(box)
        faults.reach("sandbox-stop:holder")
        await self.detach(box)
        faults.reach("sandbox-stop:network")
        await self.namespaces.remove(box.id)
        faults.reach("sandbox-stop:namespaces")
        box = dataclasses.replace(box, released_at_ns=self.clock.now_ns())
        await self.store.update(box)
        faults.reach("sandbox-stop:released")
        return box

    async def erase(self, box: Sandbox) -> None:
        """Everything goes, the row last."""
        if not box.released_at_ns:
            await self.holder.remove(box)
            await self.detach(box)
            await self.namespaces.remove(box.id)
        await self.files.remove(box.id)
        faults.reach("sandbox-remove:files")
        await self.store.delete(box.id)
        faults.reach("sandbox-remove:row")
