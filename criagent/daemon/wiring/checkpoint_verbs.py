# SPDX-License-Identifier: Apache-2.0
"""The checkpoint verbs put together; imported when the first is called."""

from __future__ import annotations

from criagent.cri.backend import Checkpoints
from criagent.daemon.wiring.containers import ContainerParts
from criagent.daemon.wiring.image import ImageParts
from criagent.daemon.wiring.node import NodeParts
from criagent.daemon.wiring.pods import PodParts
from criagent.daemon.wiring.shared import Shared
from criagent.runtime.checkpoint.capture import Capture
from criagent.runtime.checkpoint.container import ContainerCheckpoint
from criagent.runtime.checkpoint.manifest import ManifestKey
from criagent.runtime.checkpoint.pod import PodCheckpoint
from criagent.runtime.checkpoint.subjects import Subjects
from criagent.runtime.restore.pod import PodRestorer
from criagent.runtime.restore.source import SourceReader
from criagent.runtime.verbs.create_container import ContainerCreator


def build(
    shared: Shared,
    node: NodeParts,
    *,
    image: ImageParts,
    containers: ContainerParts,
    restorer: PodRestorer,
) -> Checkpoints:
    """The verbs."""
    fs, work = shared.executors.fs, shared.executors.checkpoints
    subjects = Subjects(
        containers=shared.stores.containers,
        sandboxes=shared.stores.sandboxes,
        endings=shared.work.endings,
        handlers=node.handlers,
        files=containers.files,
        fs=fs,
    )
    capture = Capture(
        runtimes=node.runtimes,
        drivers=image.drivers,
        paths=node.paths,
        now_ns=shared.clock.now_ns,
        work=work,
    )
    of_container = ContainerCheckpoint(
        subjects=subjects,
        checkpoints=shared.work.checkpoints,
        capture=capture,
        leftovers=containers.checkpoints,
        paths=node.paths,
        work=work,
    )
    of_pod = PodCheckpoint(
        subjects=subjects,
        checkpoints=shared.work.checkpoints,
        capture=capture,
        leftovers=containers.checkpoints,
        key=ManifestKey(shared.stores.settings),
        paths=node.paths,
        work=work,
    )
    return Checkpoints(
        container=of_container.checkpoint, pod=of_pod.checkpoint, restore=restorer.restore
    )


def restorer(
    shared: Shared,
    node: NodeParts,
    *,
    pods: PodParts,
    containers: ContainerParts,
    creator: ContainerCreator,
) -> PodRestorer:
    """RestorePod."""
    return PodRestorer(
        runner=pods.runner,
        creator=creator,
        containers=shared.stores.containers,
        erasure=containers.erasure,
        plugins=node.nri.plugins,
        handlers=node.handlers,
        reader=SourceReader(ManifestKey(shared.stores.settings), shared.executors.checkpoints),
        paths=node.paths,
    )
