# SPDX-License-Identifier: Apache-2.0
"""NRI before its first plugin: what serves plugins is large, and most nodes have none."""

from __future__ import annotations

from criagent.model.common import Resources
from criagent.model.container import Container
from criagent.model.sandbox import Sandbox
from criagent.runtime.nri.door import NoPlugins, Plugins
from criagent.runtime.spec.inputs import OciObject


class PluginsOnDemand:
    """Nobody, until there are the plugins of `serve`."""

    def __init__(self) -> None:
        self._plugins: Plugins = NoPlugins()

    def serve(self, plugins: Plugins) -> None:
        """Pass everything on to `plugins` from now on."""
        self._plugins = plugins

    @property
    def active(self) -> bool:
        """As theirs."""
        return self._plugins.active

    async def sandbox_run(self, sandbox: Sandbox) -> None:
        """As theirs."""
        await self._plugins.sandbox_run(sandbox)

    async def sandbox_undone(self, sandbox: Sandbox) -> None:
        """As theirs."""
        await self._plugins.sandbox_undone(sandbox)

    async def sandbox_updating(
        self, sandbox: Sandbox, overhead: Resources | None, resources: Resources | None
    ) -> None:
        """As theirs."""
        await self._plugins.sandbox_updating(sandbox, overhead, resources)

    async def sandbox_updated(self, sandbox: Sandbox) -> None:
        """As theirs."""
        await self._plugins.sandbox_updated(sandbox)

    async def sandbox_stopped(self, sandbox: Sandbox) -> None:
        """As theirs."""
        await self._plugins.sandbox_stopped(sandbox)

    async def sandbox_removed(self, sandbox: Sandbox) -> None:
        """As theirs."""
        await self._plugins.sandbox_removed(sandbox)

    async def container_creating(
        self, container: Container, sandbox: Sandbox, spec: OciObject
    ) -> Container:
        """As theirs."""
        return await self._plugins.container_creating(container, sandbox, spec)

    async def container_undone(self, container_id: str) -> None:
        """As theirs."""
        await self._plugins.container_undone(container_id)

    async def container_created(self, container: Container) -> None:
        """As theirs."""
        await self._plugins.container_created(container)

    async def container_starting(self, container: Container) -> None:
        """As theirs."""
        await self._plugins.container_starting(container)

    async def container_started(self, container_id: str) -> None:
        """As theirs."""
        await self._plugins.container_started(container_id)

    async def container_updating(
        self, container: Container, resources: Resources
    ) -> tuple[Resources, OciObject]:
        """As theirs."""
        return await self._plugins.container_updating(container, resources)

    async def container_updated(self, container_id: str) -> None:
        """As theirs."""
        await self._plugins.container_updated(container_id)

    async def container_stopped(self, container_id: str) -> None:
        """As theirs."""
        await self._plugins.container_stopped(container_id)

    async def container_removed(self, container: Container) -> None:
        """As theirs."""
        await self._plugins.container_removed(container)
