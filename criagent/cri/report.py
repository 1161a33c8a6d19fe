# SPDX-License-Identifier: Apache-2.0
"""What `criagent info` shows, as one JSON document."""

from __future__ import annotations

import dataclasses
from typing import Any

from criagent.base.aio import run_in
from criagent.cri.backend import Node
from criagent.cri.node_report import (
    host_report,
    insecure_handlers,
    registry_report,
    security_report,
)
from criagent.image.images import Images
from criagent.image.registry import RegistryClient
from criagent.kernel.file_systems import file_system
from criagent.model.container import ContainerState
from criagent.model.sandbox import SandboxState
from criagent.store.containers import ContainerStore
from criagent.store.sandboxes import SandboxStore
from criagent.version import VERSION


class AgentReport:
    """The agent as a whole, in numbers and conditions."""

    def __init__(
        self,
        *,
        sandboxes: SandboxStore,
        containers: ContainerStore,
        images: Images,
        node: Node,
        registry: RegistryClient,
    ) -> None:
        self._sandboxes = sandboxes
        self._containers = containers
        self._images = images
        self._node = node
        self._registry = registry

    async def document(self) -> dict[str, Any]:
        """The report of this moment."""
        sandboxes = [sandbox for sandbox in self._sandboxes.all() if sandbox.visible]
        containers = [container for container in self._containers.all() if container.visible]
        condition = self._node.conditions.network()
        reason, message = await self._node.conditions.unready()
        content, usable = self._images.content, self._node.handlers.usable
        return {
            "version": VERSION,
            "conditions": [
                _condition("RuntimeReady", reason, message),
                _condition("NetworkReady", condition.reason, condition.message),
                _condition("RuntimeHandlersSecure", *self._insecure()),
            ],
            "host": host_report(),
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
            "storage": await self._storage(),
            "conmon": {
                "path": str(self._node.handlers.monitor),
                "problem": self._node.handlers.monitor_problem,
            },
            "live_restore": True,  # always: containers never depend on the agent
            "cgroup_driver": str(self._node.driver),
            "cgroup_version": 2,
            "cgroup_controllers": sorted(self._node.facts.controllers),
            "security": security_report(self._node.facts, usable),
            "registries": await run_in(content.fs, registry_report, self._registry.settings),
            "network": {
                "backend": self._node.network.backend,
                "ready": condition.ready,
                "message": condition.message,
            },
            "nri": self._node.nri(),
            "default_handler": self._node.handlers.default,
            "handlers": self._handlers(),
        }

    async def _storage(self) -> dict[str, Any]:
        content = self._images.content
        usages = [*self._images.fs_usages(), *self._images.container_fs_usages()]
        return {
            "driver": content.snapshots.driver,
            "drivers_of_handlers": dict(content.drivers.drivers),
            "root": str(self._node.paths.root),
            "containers_root": str(self._node.paths.containers_root or ""),
            "run_dir": str(self._node.paths.run_dir),
            "used_bytes": sum(usage.used_bytes for usage in usages),
            **await run_in(content.fs, self._file_systems),
        }

    def _handlers(self) -> list[dict[str, str]]:
        return [
            {
                "name": facts.name,
                "type": facts.type,
                "path": str(facts.path),
                "version": facts.version,
                "problem": facts.problem,
                "checkpoints": facts.checkpoint_problem or "yes",
            }
            for facts in self._node.handlers.configured
        ]

    def _insecure(self) -> tuple[str, str]:
        """Reason and message, both empty when no handler has known problems."""
        found = insecure_handlers(self._node.handlers)
        return ("KnownVulnerabilities" if found else "", "; ".join(found))

    def _file_systems(self) -> dict[str, Any]:
        """Of images, and of containers if theirs is another one. Synchronous."""
        snapshots = self._images.content.snapshots
        found = {"file_system": dataclasses.asdict(file_system(snapshots.root))}
        if snapshots.containers_root != snapshots.root:
            apart = dataclasses.asdict(file_system(snapshots.containers_root))
            found["containers_file_system"] = apart
        return found


def _condition(kind: str, reason: str, message: str) -> dict[str, object]:
    return {"type": kind, "status": not reason, "reason": reason, "message": message}
