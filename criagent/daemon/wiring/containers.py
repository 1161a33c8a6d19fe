# SPDX-License-Identifier: Apache-2.0
"""Containers put together: what verbs and recovery share."""

from __future__ import annotations

import dataclasses

from criagent.base.aio import KeyedLocks
from criagent.daemon.wiring.image import ImageParts
from criagent.daemon.wiring.node import NodeParts
from criagent.daemon.wiring.shared import Shared
from criagent.runtime.checkpoint.leftovers import CheckpointLeftovers
from criagent.runtime.container.ending import ContainerEnding
from criagent.runtime.container.erasure import ContainerErasure
from criagent.runtime.container.exits import ExitWatcher
from criagent.runtime.container.files import ContainerFiles
from criagent.runtime.container.oom import OomWatch
from criagent.runtime.container.transitions import Transitions
from criagent.runtime.oci.conmon import Conmon, monitors_cgroup


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ContainerParts:
    """What others need of containers."""

    files: ContainerFiles
    transitions: Transitions
    exits: ExitWatcher
    ending: ContainerEnding
    erasure: ContainerErasure
    checkpoints: CheckpointLeftovers
    conmon: Conmon


def build(shared: Shared, node: NodeParts, image: ImageParts) -> ContainerParts:
    """What containers have on disk, their exits and their end."""
    store, fs = shared.stores.containers, shared.executors.fs
    files = ContainerFiles(paths=node.paths, drivers=image.drivers, fs=fs)
    transitions = Transitions(store=store, locks=KeyedLocks("container"))
    exits = ExitWatcher(
        store=store,
        transitions=transitions,
        paths=node.paths,
        oom=OomWatch(),
        starts=shared.work.starts,
        clock=shared.clock,
        fs=fs,
        boot_id=shared.boot_id,
    )
    return ContainerParts(
        files=files,
        transitions=transitions,
        exits=exits,
        ending=ContainerEnding(
            endings=shared.work.endings,
            checkpoints=shared.work.checkpoints,
            starts=shared.work.starts,
            exits=exits,
            transitions=transitions,
            plugins=node.nri.plugins,
            fs=fs,
        ),
        erasure=ContainerErasure(store=store, runtimes=node.runtimes, files=files),
        checkpoints=CheckpointLeftovers(containers=store, paths=node.paths, fs=fs),
        conmon=Conmon(
            program=shared.config.runtime.conmon,
            paths=node.paths,
            limit_s=shared.config.runtime.create_timeout_s,
            cgroup=monitors_cgroup(),
            journald=shared.config.runtime.log_to_journald,
            fs=fs,
        ),
    )
