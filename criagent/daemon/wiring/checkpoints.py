# SPDX-License-Identifier: Apache-2.0
"""Checkpoints put together."""

from __future__ import annotations

from criagent.daemon.wiring.containers import ContainerParts
from criagent.daemon.wiring.image import ImageParts
from criagent.daemon.wiring.node import NodeParts
from criagent.daemon.wiring.shared import Shared
from criagent.runtime.checkpoint.capture import Capture
from criagent.runtime.checkpoint.container import ContainerCheckpoint
from criagent.runtime.checkpoint.leftovers import CheckpointLeftovers
from criagent.runtime.checkpoint.subjects import Subjects


def build(
    shared: Shared, node: NodeParts, *, image: ImageParts, containers: ContainerParts
) -> ContainerCheckpoint:
    """The verb."""
    fs, work = shared.executors.fs, shared.executors.checkpoints
    return ContainerCheckpoint(
        subjects=Subjects(
            containers=shared.stores.containers,
            sandboxes=shared.stores.sandboxes,
            endings=shared.work.endings,
            handlers=node.handlers,
            files=containers.files,
            fs=fs,
        ),
        checkpoints=shared.work.checkpoints,
        capture=Capture(
            runtimes=node.runtimes,
            snapshots=image.snapshots,
            paths=node.paths,
            now_ns=shared.clock.now_ns,
            work=work,
        ),
        leftovers=leftovers(shared, node),
        paths=node.paths,
        fs=fs,
        work=work,
    )


def leftovers(shared: Shared, node: NodeParts) -> CheckpointLeftovers:
    """What takes checkpoints in progress away."""
    return CheckpointLeftovers(
        containers=shared.stores.containers, paths=node.paths, fs=shared.executors.fs
    )
