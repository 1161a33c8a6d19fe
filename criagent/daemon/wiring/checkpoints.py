# SPDX-License-Identifier: Apache-2.0
"""The checkpoint verbs, made when the first is called: most nodes never do, and they are large."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from criagent.cri.backend import Checkpoints
from criagent.daemon.wiring.containers import ContainerParts
from criagent.daemon.wiring.image import ImageParts
from criagent.daemon.wiring.node import NodeParts
from criagent.daemon.wiring.shared import Shared


def build(
    shared: Shared, node: NodeParts, *, image: ImageParts, containers: ContainerParts
) -> Checkpoints:
    """The verbs."""

    @functools.cache
    def verbs() -> Checkpoints:
        from criagent.daemon.wiring import checkpoint_verbs

        return checkpoint_verbs.build(shared, node, image=image, containers=containers)

    async def of_container(container_id: str, location: str, timeout_s: int) -> None:
        await verbs().container(container_id, location, timeout_s)

    async def of_pod(
        sandbox_id: str, output_path: str, container_ids: Sequence[str], limit_s: float
    ) -> None:
        await verbs().pod(sandbox_id, output_path, container_ids, limit_s)

    return Checkpoints(container=of_container, pod=of_pod)
