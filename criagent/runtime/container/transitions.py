# SPDX-License-Identifier: Apache-2.0
"""Changes of a container's row, one at a time: read, change, write under the row's lock."""

from __future__ import annotations

import dataclasses
from typing import Any

from criagent.base.aio import KeyedLocks, finish
from criagent.model.container import Container
from criagent.store.containers import ContainerStore


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Transitions:
    """Several verbs change one row; none may overwrite what another has just written."""

    store: ContainerStore
    locks: KeyedLocks

    async def apply(self, container_id: str, **changes: Any) -> Container | None:
        """Replace fields of the row; None when it no longer exists."""
        return await finish(self._apply(container_id, changes))

    async def _apply(self, container_id: str, changes: dict[str, Any]) -> Container | None:
        async with self.locks.hold(container_id):
            container = self.store.get(container_id)
            if container is None:
                return None
            container = _in_order(dataclasses.replace(container, **changes))
            await self.store.update(container)
            return container


def _in_order(container: Container) -> Container:
    """Times of files are coarser than the clock: an exit must never precede its start."""
    if container.finished_at_ns and container.finished_at_ns <= max(
        container.started_at_ns, container.created_at_ns
    ):
        earliest = max(container.started_at_ns, container.created_at_ns) + 1
        return dataclasses.replace(container, finished_at_ns=earliest)
    return container
