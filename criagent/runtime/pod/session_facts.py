# SPDX-License-Identifier: Apache-2.0
"""Who a session belongs to, for the log: pod, container, command."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from criagent.model.container import Container
from criagent.model.sandbox import Sandbox
from criagent.store.containers import ContainerStore
from criagent.store.sandboxes import SandboxStore

_COMMAND_MOST = 256


@dataclasses.dataclass(frozen=True, slots=True)
class SessionFacts:
    """Log keys of the objects that a session is about."""

    sandboxes: SandboxStore
    containers: ContainerStore

    def of_container(self, container: Container) -> dict[str, str]:
        """Facts about the container, and about its pod from the sandbox."""
        sandbox = self.sandboxes.get(container.sandbox_id)
        return (
            container.facts if sandbox is None else {**container.facts, **self.of_sandbox(sandbox)}
        )

    def of_sandbox(self, sandbox: Sandbox) -> dict[str, str]:
        """`pod` as namespace/name, `pod_uid`, `sandbox_id`."""
        return {**sandbox.spec.metadata.facts, "sandbox_id": sandbox.id}

    def of_container_id(self, container_id: str) -> dict[str, str]:
        """As `of_container`; the id alone when the container is gone."""
        container = self.containers.get(container_id)
        known = {} if container is None else self.of_container(container)
        return {"container_id": container_id, **known}

    def of_sandbox_id(self, sandbox_id: str) -> dict[str, str]:
        """As `of_sandbox`; the id alone when the sandbox is gone."""
        sandbox = self.sandboxes.get(sandbox_id)
        known = {} if sandbox is None else self.of_sandbox(sandbox)
        return {"sandbox_id": sandbox_id, **known}


def shown_command(cmd: Sequence[str]) -> str:
    """A command's argv as text, cut to 256 characters."""
    text = " ".join(word[: _COMMAND_MOST + 1] for word in cmd[: _COMMAND_MOST + 1])
    return text if len(text) <= _COMMAND_MOST else f"{text[:_COMMAND_MOST]}…"
