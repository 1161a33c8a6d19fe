"""UpdateContainerResources: new limits for a container, all or none."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import structlog

from criagent.errors import WrongStateError
from criagent.model import ContainerState, Resources
from criagent.runtime.cgroups import resources_to_oci
from criagent.runtime.oci import OciRuntime
from criagent.runtime.spec_inputs import NodeFacts
from criagent.runtime.transitions import Transitions
from criagent.store.containers import ContainerStore

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ResourceUpdater:
    """The UpdateContainerResources verb."""

    store: ContainerStore
    transitions: Transitions
    runtimes: Mapping[str, OciRuntime]
    node: NodeFacts

    async def update(self, container_id: str, resources: Resources) -> None:
        """Change the limits that are given; zero and empty ones stay as they are.

        Raises NotFoundError, WrongStateError for an exited container, UnsupportedError for a limit
        whose controller is missing, AgentError with the runtime's words.
        """
        row = self.store.resolve(container_id)
        if row.state is ContainerState.EXITED:
            raise WrongStateError(f"container {row.id} has exited; its limits cannot change")
        wanted = resources_to_oci(
            resources,
            controllers=self.node.controllers,
            missing=self.node.missing_controllers,
            swap=self.node.swap,
        )
        if wanted:
            await self.runtimes[row.handler].update(row.id, wanted)
        await self.transitions.apply(row.id, resources=merged(row.resources, resources))
        log.info("container_updated", container_id=row.id)


def merged(old: Resources, new: Resources) -> Resources:
    """`old` with everything that `new` gives."""
    given = {
        field.name: value
        for field in dataclasses.fields(new)
        if (value := getattr(new, field.name))
    }
    if new.unified:
        given["unified"] = {**old.unified, **new.unified}
    return dataclasses.replace(old, **given)
