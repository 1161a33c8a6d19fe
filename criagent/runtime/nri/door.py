# SPDX-License-Identifier: Apache-2.0
"""What verbs tell NRI plugins, and what they get from them (docs/nri.md).

A caller asks `active` first, so that nothing is done for a pod while there is no plugin.
"""

from __future__ import annotations

from typing import Protocol

from criagent.model.common import Resources
from criagent.model.container import Container
from criagent.model.sandbox import Sandbox
from criagent.runtime.spec.inputs import OciObject


class Plugins(Protocol):
    """NRI as the runtime sees it.

    Methods of work that is about to be done (`…_run`, `…_creating`, `…_starting`, `…_updating`)
    raise AgentError when a plugin refuses it, or cannot be asked and its policy says that this is
    a failure. The others never raise.
    """

    @property
    def active(self) -> bool:
        """Whether any plugin, or the validator, must hear of what happens."""

    async def sandbox_run(self, sandbox: Sandbox) -> None:
        """Everything of the sandbox exists, and it is about to become READY."""

    async def sandbox_undone(self, sandbox: Sandbox) -> None:
        """It will not become READY."""

    async def sandbox_updating(
        self, sandbox: Sandbox, overhead: Resources | None, resources: Resources | None
    ) -> None:
        """The kubelet resizes the pod."""

    async def sandbox_updated(self, sandbox: Sandbox) -> None:
        """Its row has the new sizes."""

    async def sandbox_stopped(self, sandbox: Sandbox) -> None:
        """Its containers have ended; its network and namespaces are still there."""

    async def sandbox_removed(self, sandbox: Sandbox) -> None:
        """Its row is about to go."""

    async def container_creating(
        self, container: Container, sandbox: Sandbox, spec: OciObject
    ) -> Container:
        """Adjust a new container: its specification in place, and what its row says of it.

        Raises InvalidRequestError, UnsupportedError for an adjustment that cannot be made.
        """

    async def container_undone(self, container_id: str) -> None:
        """It will not become CREATED."""

    async def container_created(self, container: Container) -> None:
        """Its row says CREATED."""

    async def container_starting(self, container: Container) -> None:
        """Its process is about to run."""

    async def container_started(self, container_id: str) -> None:
        """Its row says RUNNING."""

    async def container_updating(
        self, container: Container, resources: Resources
    ) -> tuple[Resources, OciObject]:
        """The limits to set instead, and those that CRI does not have, as OCI resources."""

    async def container_updated(self, container_id: str) -> None:
        """Its row has the new limits."""

    async def container_stopped(self, container_id: str) -> None:
        """Return when plugins know of its exit. They learn of it from the row."""

    async def container_removed(self, container: Container) -> None:
        """It has ended, and its files are about to go."""


class NoPlugins:
    """NRI is off."""

    active = False

    async def sandbox_run(self, sandbox: Sandbox) -> None:
        """Nobody hears of it."""

    async def sandbox_undone(self, sandbox: Sandbox) -> None:
        """Nobody hears of it."""

    async def sandbox_updating(
        self, sandbox: Sandbox, overhead: Resources | None, resources: Resources | None
    ) -> None:
        """Nobody hears of it."""

    async def sandbox_updated(self, sandbox: Sandbox) -> None:
        """Nobody hears of it."""

    async def sandbox_stopped(self, sandbox: Sandbox) -> None:
        """Nobody hears of it."""

    async def sandbox_removed(self, sandbox: Sandbox) -> None:
        """Nobody hears of it."""

    async def container_creating(
        self, container: Container, sandbox: Sandbox, spec: OciObject
    ) -> Container:
        """The container as it is."""
        del sandbox, spec
        return container

    async def container_undone(self, container_id: str) -> None:
        """Nobody hears of it."""

    async def container_created(self, container: Container) -> None:
        """Nobody hears of it."""

    async def container_starting(self, container: Container) -> None:
        """Nobody hears of it."""

    async def container_started(self, container_id: str) -> None:
        """Nobody hears of it."""

    async def container_updating(
        self, container: Container, resources: Resources
    ) -> tuple[Resources, OciObject]:
        """The limits as they are."""
        del container
        return resources, {}

    async def container_updated(self, container_id: str) -> None:
        """Nobody hears of it."""

    async def container_stopped(self, container_id: str) -> None:
        """Nobody hears of it."""

    async def container_removed(self, container: Container) -> None:
        """Nobody hears of it."""
