"""Changes of a container's row, one at a time: read, change, write under the row's lock."""

from __future__ import annotations

import dataclasses
from typing import Any

from criagent.base.aio import KeyedLocks, finish
from criagent.model import Container
from criagent.store.containers import ContainerStore


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Transitions:
    """Several verbs touch one row; none may write over what another has just written."""

    store: ContainerStore
    locks: KeyedLocks

    async def apply(self, container_id: str, **changes: Any) -> Container | None:
        """Replace fields of the row; None when it is gone."""
        return await finish(self._apply(container_id, changes))

    async def _apply(self, container_id: str, changes: dict[str, Any]) -> Container | None:
        async with self.locks.hold(container_id):
            row = self.store.get(container_id)
            if row is None:
                return None
            row = _in_order(dataclasses.replace(row, **changes))
            await self.store.update(row)
            return row


def _in_order(row: Container) -> Container:
    """Times of files are coarser than the clock: an exit is never told to precede its start."""
    if row.finished_at_ns and row.finished_at_ns <= max(row.started_at_ns, row.created_at_ns):
        earliest = max(row.started_at_ns, row.created_at_ns) + 1
        return dataclasses.replace(row, finished_at_ns=earliest)
    return row
