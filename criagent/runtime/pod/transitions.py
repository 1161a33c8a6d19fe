# SPDX-License-Identifier: Apache-2.0
"""Changes of a ready sandbox's row, one at a time: read, change, write under the row's lock."""

from __future__ import annotations

import dataclasses
from typing import Any

from criagent.base.aio import KeyedLocks, finish
from criagent.base.errors import NotFoundError
from criagent.model.sandbox import Sandbox
from criagent.store.sandboxes import SandboxStore


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SandboxTransitions:
    """A stop and a resize change one row; neither may overwrite what the other has just written."""

    store: SandboxStore
    locks: KeyedLocks

    async def apply(self, sandbox_id: str, **changes: Any) -> Sandbox:
        """Replace fields of the row. Raises NotFoundError when it no longer exists."""
        return await finish(self._apply(sandbox_id, changes))

    async def _apply(self, sandbox_id: str, changes: dict[str, Any]) -> Sandbox:
        async with self.locks.hold(sandbox_id):
            sandbox = self.store.get(sandbox_id)
            if sandbox is None:
                raise NotFoundError(f"sandbox {sandbox_id!r} not found")
            sandbox = dataclasses.replace(sandbox, **changes)
            await self.store.update(sandbox)
            return sandbox
