# SPDX-License-Identifier: Apache-2.0
"""StopContainer: how long it may take; the stop itself is `container/ending.py`."""

from __future__ import annotations

from criagent.base.errors import NotFoundError
from criagent.model.container import ContainerState
from criagent.runtime.container.ending import ContainerEnding, boot_ns
from criagent.store.containers import ContainerStore

_MAX_GRACE_S = 10 * 365 * 24 * 3600


class ContainerStopper:
    """The StopContainer verb."""

    def __init__(self, *, store: ContainerStore, ending: ContainerEnding) -> None:
        self._store = store
        self._ending = ending

    async def stop(self, container_id: str, timeout_s: int) -> None:
        """Return when the container has exited; unknown ids and exited ones are fine.

        Raises what `ContainerEnding.stop_by` raises.
        """
        try:
            container = self._store.resolve(container_id)
        except NotFoundError:
            return
        if not container.ready_at_ns or container.state is ContainerState.EXITED:
            return
        grace_s = min(max(timeout_s, 0), _MAX_GRACE_S)
        await self._ending.stop_by(container, boot_ns() + grace_s * 10**9)
