"""Remove a container from any state: kill, unmount, drop the writable layer, the row last."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial

import structlog

from criagent.base import faults
from criagent.base.aio import Owner, Owners, run_in
from criagent.base.errors import NotFoundError
from criagent.model.container import Container
from criagent.runtime.container.files import ContainerFiles
from criagent.runtime.oci.runtime import OciRuntime
from criagent.runtime.verbs.stop_container import ContainerStopper
from criagent.store.containers import ContainerStore

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ContainerRemover:
    """The RemoveContainer verb; one task per container. The log file stays: it is the kubelet's."""

    store: ContainerStore
    owners: Owners[None]
    stopper: ContainerStopper
    runtimes: Mapping[str, OciRuntime]
    files: ContainerFiles

    async def remove(self, container_id: str) -> None:
        """Return when nothing of the container is left; unknown ids are fine."""
        try:
            container = self.store.resolve(container_id)
        except NotFoundError:
            return
        if not container.visible:
            return  # it is being created, or that is being undone
        key = f"remove-container:{container.id}"
        owner = self.owners.get(key) or self.owners.start(
            key, None, partial(self._remove, container.id)
        )
        await self.owners.join(owner)

    async def _remove(self, container_id: str, owner: Owner[None]) -> None:
        owner.stage = "stop"
        await self.stopper.stop(container_id, 0)
        container = self.store.get(container_id)
        if container is not None:
            owner.stage = "files"
            await self.erase(container)
            log.info("container_removed", container_id=container_id)

    async def erase(self, container: Container) -> None:
        """Remove everything of a dead container, the row last; idempotent."""
        runtime = self.runtimes.get(container.handler)
        if runtime is not None:
            await runtime.delete(container.id)
        else:
            await run_in(self.files.fs, self.files.paths.forget_state, container.id)
        faults.reach("container-remove:runtime")
        await self.files.remove(container.id, container.cgroup)
        faults.reach("container-remove:files")
        await self.store.delete(container.id)
        faults.reach("container-remove:row")
