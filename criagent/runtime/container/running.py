# SPDX-License-Identifier: Apache-2.0
"""The check with which exec, attach and similar verbs begin."""

from __future__ import annotations

from criagent.base.errors import WrongStateError
from criagent.model.container import Container, ContainerState
from criagent.store.containers import ContainerStore


def running(store: ContainerStore, container_id: str) -> Container:
    """The running container. Raises NotFoundError, WrongStateError."""
    container = store.resolve(container_id)
    if container.state is not ContainerState.RUNNING:
        raise WrongStateError(
            f"container {container.id} is {container.state.name.lower()}, not running"
        )
    return container
