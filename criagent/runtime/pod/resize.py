# SPDX-License-Identifier: Apache-2.0
"""UpdatePodSandboxResources: NRI plugins hear of it, and the row keeps it for them.

The kubelet writes the pod's cgroup itself. An error makes it refuse the resize, so only a plugin's
refusal is one.
"""

from __future__ import annotations

import dataclasses

from criagent.model.common import Resources
from criagent.runtime.nri.door import Plugins
from criagent.runtime.pod.transitions import SandboxTransitions
from criagent.store.sandboxes import SandboxStore


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SandboxResizer:
    """The UpdatePodSandboxResources verb."""

    store: SandboxStore
    transitions: SandboxTransitions
    plugins: Plugins

    async def update(
        self, sandbox_id: str, overhead: Resources | None, resources: Resources | None
    ) -> None:
        """Raises NotFoundError, AgentError with the text of a plugin that refuses it."""
        sandbox = self.store.resolve(sandbox_id)
        if self.plugins.active:
            await self.plugins.sandbox_updating(sandbox, overhead, resources)
        if (sandbox.overhead, sandbox.resources) != (overhead, resources):
            sandbox = await self.transitions.apply(
                sandbox.id, new_overhead=overhead, new_resources=resources
            )
        if self.plugins.active:
            await self.plugins.sandbox_updated(sandbox)
