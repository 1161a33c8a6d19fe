# SPDX-License-Identifier: Apache-2.0
"""What owner tasks are keyed by. Making, starting and ending have owners of their own."""

from __future__ import annotations

import enum
from typing import NamedTuple

from criagent.base.aio import Owners
from criagent.model.container import Container, ContainerId, ContainerMetadata, container_key
from criagent.model.sandbox import SandboxId


class ContainerName(NamedTuple):
    """What no two containers share; a container is made under it before it has an id."""

    sandbox_id: SandboxId
    metadata: ContainerMetadata

    def __str__(self) -> str:
        return container_key(self.sandbox_id, self.metadata)


class Act(enum.StrEnum):
    """Each is done once at a time to one object, and side by side with the others."""

    STOP_SANDBOX = "stop"
    REMOVE_SANDBOX = "remove"
    STOP_CONTAINER = "stop-container"
    REMOVE_CONTAINER = "remove-container"


class Ending(NamedTuple):
    """One object's end."""

    act: Act
    object_id: SandboxId | ContainerId

    def __str__(self) -> str:
        return f"{self.act}:{self.object_id}"


ContainerCreations = Owners[ContainerName, Container]
Starts = Owners[ContainerId, None]
Endings = Owners[Ending, None]
Checkpoints = Owners[ContainerId, None]


def shown_start(container_id: ContainerId) -> str:
    """The key of a start as spans show it."""
    return f"start:{container_id}"
