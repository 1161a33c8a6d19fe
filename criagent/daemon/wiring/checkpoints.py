# SPDX-License-Identifier: Apache-2.0
"""The checkpoint verbs, made when the first is called: most nodes never do, and they are large."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from criagent.cri.backend import Checkpoints
from criagent.daemon.wiring.containers import ContainerParts
from criagent.daemon.wiring.image import ImageParts
from criagent.daemon.wiring.node import NodeParts
from criagent.daemon.wiring.pods import PodParts
from criagent.daemon.wiring.shared import Shared
from criagent.model.container import Container, ContainerSpec
from criagent.model.sandbox import Sandbox, SandboxSpec
from criagent.runtime.verbs.create_container import ContainerCreator

if TYPE_CHECKING:
    from criagent.runtime.restore.pod import PodRestorer


def build(
    shared: Shared,
    node: NodeParts,
    *,
    image: ImageParts,
    containers: ContainerParts,
    restorer: Callable[[], PodRestorer],
) -> Checkpoints:
    """The verbs."""

    @functools.cache
    def verbs() -> Checkpoints:
        from criagent.daemon.wiring import checkpoint_verbs

        return checkpoint_verbs.build(
            shared, node, image=image, containers=containers, restorer=restorer()
        )

    async def of_container(container_id: str, location: str, timeout_s: int) -> None:
        await verbs().container(container_id, location, timeout_s)

    async def of_pod(
        sandbox_id: str, output_path: str, container_ids: Sequence[str], limit_s: float
    ) -> None:
        await verbs().pod(sandbox_id, output_path, container_ids, limit_s)

    async def restore(
        path: str, spec: SandboxSpec, containers: Sequence[ContainerSpec], limit_s: float
    ) -> tuple[Sandbox, list[Container]]:
        return await verbs().restore(path, spec, containers, limit_s)

    return Checkpoints(container=of_container, pod=of_pod, restore=restore)


def restorer(
    shared: Shared,
    node: NodeParts,
    *,
    pods: PodParts,
    containers: ContainerParts,
    creator: ContainerCreator,
) -> Callable[[], PodRestorer]:
    """RestorePod, put together when the first is called."""

    def made() -> PodRestorer:
        from criagent.daemon.wiring import checkpoint_verbs

        return checkpoint_verbs.restorer(
            shared, node, pods=pods, containers=containers, creator=creator
        )

    return made
