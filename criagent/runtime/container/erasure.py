# SPDX-License-Identifier: Apache-2.0
"""Take a dead container's objects away from any half-state, for Remove and recovery."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from criagent.base import faults
from criagent.model.container import Container, Reason
from criagent.runtime.container.files import ContainerFiles
from criagent.runtime.oci.runtime import OciRuntime
from criagent.store.containers import ContainerStore


class ContainerErasure:
    """Each step is idempotent and finds its objects from the id. The log file stays."""

    def __init__(
        self, *, store: ContainerStore, runtimes: Mapping[str, OciRuntime], files: ContainerFiles
    ) -> None:
        self._store = store
        self._runtimes = runtimes
        self._files = files

    async def erase(self, container: Container) -> None:
        """Remove everything, the row last."""
        runtime = self._runtimes.get(container.handler)
        if runtime is not None:
            await runtime.delete(container.id)
        else:
            await self._files.forget_state(container.id)
        faults.reach("container-remove:runtime")
        await self._files.remove(container.id, container.cgroup)
        faults.reach("container-remove:files")
        await self._store.delete(container.id)
        faults.reach("container-remove:row")


def left_for_removal(now_ns: int) -> dict[str, Any]:
    """Fields that list a container whose undo failed as EXITED, so that the kubelet removes it."""
    return {"finished_at_ns": now_ns, "exit_code": 255, "reason": str(Reason.UNKNOWN)}
