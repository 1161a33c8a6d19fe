# SPDX-License-Identifier: Apache-2.0
"""Start a created container; a repeat that finds it running succeeds."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import structlog

from criagent.base import faults
from criagent.base.aio import Owner
from criagent.base.errors import AgentError, WrongStateError
from criagent.model.container import Container, ContainerId, ContainerState
from criagent.runtime.checkpoint.restored import RestoredContainers
from criagent.runtime.container.keys import Starts
from criagent.runtime.container.transitions import Transitions
from criagent.runtime.node.clock import Clock
from criagent.runtime.nri.door import Plugins
from criagent.runtime.oci.runtime import OciRuntime
from criagent.store.containers import ContainerStore
from criagent.store.sandboxes import SandboxStore

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class ContainerStarter:
    """The StartContainer verb; one task per container."""

    def __init__(
        self,
        *,
        store: ContainerStore,
        sandboxes: SandboxStore,
        starts: Starts,
        runtimes: Mapping[str, OciRuntime],
        transitions: Transitions,
        plugins: Plugins,
        clock: Clock,
        restored: RestoredContainers,
    ) -> None:
        self._store = store
        self._sandboxes = sandboxes
        self._starts = starts
        self._runtimes = runtimes
        self._transitions = transitions
        self._plugins = plugins
        self._clock = clock
        self._restored = restored

    async def start(self, container_id: str) -> None:
        """Run the container's process. Raises NotFoundError, WrongStateError for an exited one."""
        container = self._store.resolve(container_id)
        if container.state is ContainerState.EXITED:
            raise WrongStateError(
                f"container {container.id} has exited; remove it and create another"
            )
        sandbox = self._sandboxes.get(container.sandbox_id)
        if sandbox is None or sandbox.stopped_at_ns:
            raise WrongStateError(
                f"sandbox {container.sandbox_id} of container {container.id} was stopped"
            )
        if container.started_at_ns:
            return
        await self._starts.run(container.id, partial(self._start, container))

    async def _start(self, container: Container, owner: Owner[ContainerId, None]) -> None:
        if self._plugins.active:
            owner.stage = "NRI plugins"
            await self._plugins.container_starting(container)
        if container.restored:
            owner.stage = "CRIU"
            await self._restored.start(container)
        else:
            await self._run(container, owner)
        faults.reach("container-start:row")
        if self._plugins.active:
            owner.stage = "NRI plugins"
            await self._plugins.container_started(container.id)
        log.info("container_started", container_id=container.id)

    async def _run(self, container: Container, owner: Owner[ContainerId, None]) -> None:
        owner.stage = "OCI runtime"
        started_at_ns = self._clock.now_ns()
        runtime = self._runtimes[container.handler]
        try:
            await runtime.start(container.id)
        except AgentError:
            # A daemon that died right here had already started it.
            if await runtime.status(container.id) != "running":
                raise
        faults.reach("container-start:started")
        await self._transitions.apply(container.id, started_at_ns=started_at_ns)
