# SPDX-License-Identifier: Apache-2.0
"""Recovery put together."""

from __future__ import annotations

from criagent.daemon.wiring.containers import ContainerParts
from criagent.daemon.wiring.image import ImageParts
from criagent.daemon.wiring.node import NodeParts
from criagent.daemon.wiring.pods import PodParts
from criagent.daemon.wiring.shared import Shared
from criagent.runtime.recovery.containers import ContainerRecovery
from criagent.runtime.recovery.orphans import Orphans
from criagent.runtime.recovery.recovery import Recovery
from criagent.runtime.recovery.sandboxes import SandboxRecovery
from criagent.runtime.recovery.unknown_containers import UnknownContainers


def build(
    shared: Shared,
    node: NodeParts,
    *,
    image: ImageParts,
    pods: PodParts,
    containers: ContainerParts,
) -> Recovery:
    """What brings rows and kernel back into agreement."""
    stores, fs = shared.stores, shared.executors.fs
    orphans = Orphans(
        sandboxes=stores.sandboxes,
        containers=stores.containers,
        drivers=image.drivers,
        checkpoints=containers.checkpoints,
        paths=node.paths,
        fs=fs,
    )
    return Recovery(
        sandboxes=stores.sandboxes,
        containers=stores.containers,
        container_recovery=ContainerRecovery(
            exits=containers.exits,
            erasure=containers.erasure,
            ending=containers.ending,
            transitions=containers.transitions,
            runtimes=node.runtimes,
            paths=node.paths,
            clock=shared.clock,
            fs=fs,
        ),
        sandbox_recovery=SandboxRecovery(
            objects=pods.objects,
            watch=pods.watch,
            teardown=pods.teardown,
            paths=node.paths,
            boot_id=shared.boot_id,
        ),
        unknown=UnknownContainers(
            has_row=orphans.has_row, networks=pods.networks, paths=node.paths, fs=fs
        ),
        orphans=orphans,
        networks=pods.networks,
        clock=shared.clock,
    )
