# SPDX-License-Identifier: Apache-2.0
"""UpdateContainerResources: new limits for a container, all or none."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import structlog

from criagent.base.errors import WrongStateError
from criagent.model.common import Resources
from criagent.model.container import Container, ContainerState
from criagent.runtime.container.transitions import Transitions
from criagent.runtime.node.facts import NodeFacts
from criagent.runtime.nri.door import Plugins
from criagent.runtime.oci.runtime import OciRuntime
from criagent.runtime.spec.inputs import OciObject
from criagent.runtime.spec.limits import resources_to_oci
from criagent.store.containers import ContainerStore

_SWAP_FILE = "memory.swap.max"

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ResourceUpdater:
    """The UpdateContainerResources verb."""

    store: ContainerStore
    transitions: Transitions
    runtimes: Mapping[str, OciRuntime]
    node: NodeFacts
    plugins: Plugins

    async def update(self, container_id: str, resources: Resources) -> None:
        """Change the given limits; zero and empty ones stay as they are.

        Only removing a memory limit (-1) also removes that of swap, as OCI requires. Raises
        NotFoundError, WrongStateError for an exited container, UnsupportedError for a limit whose
        controller is missing, AgentError with the runtime's message.
        """
        if not self.plugins.active:
            await self.apply(container_id, resources, {})
            return
        container = self._alive(container_id)
        resources, more = await self.plugins.container_updating(container, resources)
        await self.apply(container.id, resources, more)
        await self.plugins.container_updated(container.id)

    async def apply(self, container_id: str, resources: Resources, more: OciObject) -> None:
        """As `update`, without asking plugins; `more` are limits that CRI does not have, as
        resources of OCI.
        """
        container = self._alive(container_id)
        resources = with_swap(container.resources, resources)
        wanted = resources_to_oci(
            resources,
            controllers=self.node.controllers,
            missing=self.node.missing_controllers,
            swap=self.node.swap,
        )
        wanted = joined(wanted, more)
        if wanted:
            await self.runtimes[container.handler].update(container.id, wanted)
        await self.transitions.apply(container.id, resources=merged(container.resources, resources))
        log.info("container_updated", container_id=container.id)

    def _alive(self, container_id: str) -> Container:
        container = self.store.resolve(container_id)
        if container.state is ContainerState.EXITED:
            raise WrongStateError(f"container {container.id} has exited; its limits cannot change")
        if container.restored and not container.started_at_ns:
            raise WrongStateError(
                f"container {container.id} is not restored yet; its limits can change once it runs"
            )
        return container


def with_swap(old: Resources, new: Resources) -> Resources:
    """`new` with its half of memory and swap that is not given, as the container has it.

    CRI and OCI count the two together, so that neither can change alone.
    """
    limit, total = new.memory_limit_in_bytes, new.memory_swap_limit_in_bytes
    if total and not limit:
        return dataclasses.replace(new, memory_limit_in_bytes=old.memory_limit_in_bytes)
    if not limit or total or _SWAP_FILE in new.unified:
        return new
    if _SWAP_FILE in old.unified:
        unified = {**new.unified, _SWAP_FILE: old.unified[_SWAP_FILE]}
        return dataclasses.replace(new, unified=unified)
    old_limit, old_total = old.memory_limit_in_bytes, old.memory_swap_limit_in_bytes
    if limit < 0 or old_limit <= 0 or old_total < 0:
        total = -1
    elif old_total:
        total = limit + old_total - old_limit
    return dataclasses.replace(new, memory_swap_limit_in_bytes=total)  # 0 = no swap, as before


def merged(old: Resources, new: Resources) -> Resources:
    """`old` with everything that `new` gives."""
    given = {
        field.name: value
        for field in dataclasses.fields(new)
        if (value := getattr(new, field.name))
    }
    unified = {**old.unified, **new.unified}
    if new.memory_swap_limit_in_bytes and _SWAP_FILE not in new.unified:
        unified.pop(_SWAP_FILE, None)  # the total that came counts now
    given["unified"] = unified
    return dataclasses.replace(old, **given)


def joined(one: OciObject, other: OciObject) -> OciObject:
    """`linux.resources` of OCI with the entries of `other`, part by part."""
    return {**one, **{name: {**one.get(name, {}), **part} for name, part in other.items()}}
