# SPDX-License-Identifier: Apache-2.0
"""One container after a restart: adopted, its exit written, or its unfinished creation undone."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from concurrent.futures import Executor
from functools import cached_property

import structlog

from criagent.base.aio import finish, supervised
from criagent.kernel import process
from criagent.model.common import ProcessRef
from criagent.model.container import Container
from criagent.runtime.checkpoint.restored import interrupted_restore
from criagent.runtime.container.ending import ContainerEnding
from criagent.runtime.container.erasure import ContainerErasure, left_for_removal
from criagent.runtime.container.exits import ExitWatcher
from criagent.runtime.container.transitions import Transitions
from criagent.runtime.exec.leftovers import end_leftovers
from criagent.runtime.node import own_cgroup
from criagent.runtime.node.cgroup_names import belongs_to
from criagent.runtime.node.clock import Clock
from criagent.runtime.node.paths import RuntimePaths
from criagent.runtime.oci.conmon import running_monitors
from criagent.runtime.oci.runtime import OciRuntime

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class ContainerRecovery:
    """Handles rows one by one; `Recovery` gives each its time limit."""

    def __init__(
        self,
        *,
        exits: ExitWatcher,
        erasure: ContainerErasure,
        ending: ContainerEnding,
        transitions: Transitions,
        runtimes: Mapping[str, OciRuntime],
        paths: RuntimePaths,
        clock: Clock,
        fs: Executor,
    ) -> None:
        self._exits = exits
        self._erasure = erasure
        self._ending = ending
        self._transitions = transitions
        self._runtimes = runtimes
        self._paths = paths
        self._clock = clock
        self._fs = fs

    @cached_property
    def _monitors(self) -> dict[str, ProcessRef]:
        """Live monitors, whether in a row or not."""
        return running_monitors(self._paths.exits)

    async def recover(self, container: Container) -> None:
        """Make the row true."""
        if container.cgroup and not belongs_to(container.cgroup, container.id):
            container = await self._without_cgroup(container)
        if not container.visible:
            await self.undo(container)
        elif not container.finished_at_ns:
            await self._adopt(container)

    async def _without_cgroup(self, container: Container) -> Container:
        """Version 0.1 recorded the cgroup where a runtime had put init, whichever that was: it is
        no longer used, neither for limits and statistics nor for killing.
        """
        log.warning("foreign_cgroup_dropped", container_id=container.id, cgroup=container.cgroup)
        return await self._transitions.apply(container.id, cgroup="") or container

    async def undo(self, container: Container) -> None:
        """Undo a creation that a crash cut short."""
        monitor = self._monitors.get(container.id)
        if monitor is not None:  # its death ends a runtime that is still creating
            process.send_signal(monitor, signal.SIGKILL)
        own_cgroup.kill(container.cgroup, container.id)
        try:
            await finish(self._erasure.erase(container))
        except Exception:
            await self._transitions.apply(container.id, **left_for_removal(self._clock.now_ns()))
            log.warning("container_left_for_removal", container_id=container.id)
            raise
        log.info("creation_rolled_back", container_id=container.id)

    async def _adopt(self, container: Container) -> None:
        if (
            container.restored
            and not container.started_at_ns
            and self._exits.of_this_boot(container)
        ):
            begun = await interrupted_restore(
                container,
                self._monitors.get(container.id),
                self._runtimes.get(container.handler),
                self._paths,
                self._fs,
            )
            if begun is None:
                return
            begun["started_at_ns"] = self._clock.now_ns()
            container = await self._transitions.apply(container.id, **begun) or container
        if not self._exits.of_this_boot(container) or not process.alive(container.monitor):
            await self._exits.exited(container)
            return
        try:
            container = await self._started(container)
            runtime = self._runtimes.get(container.handler)
            await end_leftovers(self._paths, container, runtime)
        finally:  # whatever failed or took too long: the exit is noticed, and the stop continues
            self._exits.adopt(container)
            if container.stop_deadline_boot_ns:
                stop = self._ending.stop_by(container, container.stop_deadline_boot_ns)
                supervised(stop, name=f"stop:{container.id}", **container.facts)
        log.debug("container_adopted", container_id=container.id)

    async def _started(self, container: Container) -> Container:
        """The row; the last daemon may have died before it recorded the start."""
        runtime = self._runtimes.get(container.handler)  # None = no longer configured
        if (
            container.started_at_ns
            or runtime is None
            or await runtime.status(container.id) != "running"
        ):
            return container
        return (
            await self._transitions.apply(container.id, started_at_ns=self._clock.now_ns())
            or container
        )
