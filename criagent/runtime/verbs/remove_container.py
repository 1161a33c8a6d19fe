# SPDX-License-Identifier: Apache-2.0
"""Remove a container from any state: kill, unmount, drop the writable layer, the row last."""

from __future__ import annotations

from functools import partial

import structlog

from criagent.base.aio import Owner
from criagent.base.errors import NotFoundError
from criagent.model.container import ContainerId
from criagent.runtime.container.erasure import ContainerErasure
from criagent.runtime.container.keys import Act, Ending, Endings
from criagent.runtime.nri.door import Plugins
from criagent.runtime.verbs.stop_container import ContainerStopper
from criagent.store.containers import ContainerStore

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class ContainerRemover:
    """The RemoveContainer verb; one task per container. The log file stays: it is the kubelet's."""

    def __init__(
        self,
        *,
        store: ContainerStore,
        endings: Endings,
        stopper: ContainerStopper,
        erasure: ContainerErasure,
        plugins: Plugins,
    ) -> None:
        self._store = store
        self._endings = endings
        self._stopper = stopper
        self._erasure = erasure
        self._plugins = plugins

    async def remove(self, container_id: str) -> None:
        """Return when nothing of the container is left; unknown ids are fine."""
        try:
            container = self._store.resolve(container_id)
        except NotFoundError:
            return
        if not container.visible:
            return  # it is being created, or that is being undone
        key = Ending(Act.REMOVE_CONTAINER, container.id)
        await self._endings.run(key, partial(self._remove, container.id))

    async def _remove(self, container_id: ContainerId, owner: Owner[Ending, None]) -> None:
        owner.stage = "stop"
        await self._stopper.stop(container_id, 0)
        container = self._store.get(container_id)
        if container is not None:
            if self._plugins.active:
                owner.stage = "NRI plugins"
                await self._plugins.container_removed(container)
            owner.stage = "files"
            await self._erasure.erase(container)
            log.info("container_removed", container_id=container_id)
