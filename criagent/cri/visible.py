# SPDX-License-Identifier: Apache-2.0
"""Rows by the ids of requests. Objects that are being made or undone do not exist for a caller."""

from __future__ import annotations

from criagent.base.errors import NotFoundError
from criagent.model.container import Container
from criagent.model.sandbox import Sandbox
from criagent.store.containers import ContainerStore
from criagent.store.sandboxes import SandboxStore


def visible_sandbox(store: SandboxStore, sandbox_id: str) -> Sandbox:
    """Raises NotFoundError."""
    sandbox = store.resolve(sandbox_id)
    if not sandbox.visible:
        raise NotFoundError(f"sandbox {sandbox.id!r} not found")
    return sandbox


def visible_container(store: ContainerStore, container_id: str) -> Container:
    """Raises NotFoundError."""
    container = store.resolve(container_id)
    if not container.visible:
        raise NotFoundError(f"container {container.id!r} not found")
    return container
