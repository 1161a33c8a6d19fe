# SPDX-License-Identifier: Apache-2.0
"""The processes of a new container: conmon, and below it the OCI runtime's `create`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from criagent.base import faults
from criagent.model.container import Container
from criagent.model.sandbox import Sandbox
from criagent.process.child import Child
from criagent.runtime.container.exits import ExitWatcher
from criagent.runtime.container.files import ContainerFiles
from criagent.runtime.container.gather import ContainerNamespacePaths
from criagent.runtime.oci.conmon import Conmon
from criagent.runtime.oci.runtime import OciRuntime


class ContainerLauncher:
    """Creates containers of finished bundles and watches them."""

    def __init__(
        self,
        *,
        conmon: Conmon,
        runtimes: Mapping[str, OciRuntime],
        namespaces: ContainerNamespacePaths,
        files: ContainerFiles,
        exits: ExitWatcher,
    ) -> None:
        self._conmon = conmon
        self._runtimes = runtimes
        self._namespaces = namespaces
        self._files = files
        self._exits = exits

    async def create(self, container: Container, sandbox: Sandbox) -> tuple[Container, Child]:
        """Start the monitor, and the runtime's `create` under it; the row has both processes.

        Raises AgentError with the runtime's text, WrongStateError for a handler that is no longer
        configured or a PID target that has ended, TimedOutError. `delete` is the undo.
        """
        monitored = await self._conmon.create(container, self._runtimes[container.handler])
        self._namespaces.check_pid(container, sandbox)
        faults.reach("container-create:created")
        if sandbox.spec.security.namespaces.pod_userns is not None:
            await self._files.release_mounts(container.id)
        created = dataclasses.replace(
            container, monitor=monitored.monitor, init=monitored.init, cgroup=monitored.cgroup
        )
        return created, monitored.child

    async def delete(self, container: Container) -> None:
        """Kill what lives and let the runtime forget the container; idempotent."""
        await self._runtimes[container.handler].delete(container.id)

    def watch(self, container: Container, child: Child) -> None:
        """Notice the exit of a container whose row is written."""
        self._exits.watch_child(container, child)
