# SPDX-License-Identifier: Apache-2.0
"""What `criagent info` shows, as one JSON document."""

from __future__ import annotations

from typing import Any

from criagent.cri.backend import Node
from criagent.image.images import Images
from criagent.model.container import ContainerState
from criagent.model.sandbox import SandboxState
from criagent.store.containers import ContainerStore
from criagent.store.sandboxes import SandboxStore
from criagent.version import VERSION


class AgentReport:
    """The agent as a whole, in numbers and conditions."""

    def __init__(
        self, *, sandboxes: SandboxStore, containers: ContainerStore, images: Images, node: Node
    ) -> None:
        self._sandboxes = sandboxes
        self._containers = containers
        self._images = images
        self._node = node

    async def document(self) -> dict[str, Any]:
        """The report of this moment."""
        sandboxes = [sandbox for sandbox in self._sandboxes.all() if sandbox.visible]
        containers = [container for container in self._containers.all() if container.visible]
        condition = self._node.conditions.network()
        reason, message = await self._node.conditions.unready()
        usages = [*self._images.fs_usages(), *self._images.container_fs_usages()]
        return {
            "version": VERSION,
            "conditions": [
                _condition("RuntimeReady", reason, message),
                _condition("NetworkReady", condition.reason, condition.message),
            ],
            "sandboxes": {
                "ready": sum(1 for sandbox in sandboxes if sandbox.state is SandboxState.READY),
                "total": len(sandboxes),
            },
            "containers": {
                state.name.lower(): sum(1 for container in containers if container.state is state)
                for state in ContainerState
                if state is not ContainerState.UNKNOWN
            },
            "images": len(self._images.all()),
            "storage": {
                "driver": self._images.content.snapshots.driver,
                "drivers_of_handlers": dict(self._images.content.drivers.drivers),
                "root": str(self._node.paths.root),
                "containers_root": str(self._node.paths.containers_root or ""),
                "run_dir": str(self._node.paths.run_dir),
                "used_bytes": sum(usage.used_bytes for usage in usages),
            },
            "conmon": {"problem": self._node.handlers.monitor_problem},
            "cgroup_driver": str(self._node.driver),
            "network": {
                "backend": self._node.network.backend,
                "ready": condition.ready,
                "message": condition.message,
            },
            "nri": self._node.nri(),
            "handlers": [
                {
                    "name": facts.name,
                    "path": str(facts.path),
                    "version": facts.version,
                    "problem": facts.problem,
                    "checkpoints": facts.checkpoint_problem or "yes",
                }
                for facts in self._node.handlers.by_name.values()
            ],
        }


def _condition(kind: str, reason: str, message: str) -> dict[str, object]:
    return {"type": kind, "status": not reason, "reason": reason, "message": message}
