# SPDX-License-Identifier: Apache-2.0
"""Layers, directories, scopes and unfinished checkpoints: swept when the rest is recovered."""

from __future__ import annotations

import os
import shutil
from concurrent.futures import Executor

import structlog

from criagent.base.aio import run_in
from criagent.image.snapshots.by_handler import SnapshotsByHandler
from criagent.kernel import mount
from criagent.kernel.trees import remove_tree
from criagent.model.common import ID_PATTERN
from criagent.runtime.checkpoint.leftovers import CheckpointLeftovers
from criagent.runtime.node.paths import RuntimePaths
from criagent.runtime.oci.failed_scopes import forget_orphans
from criagent.store.containers import ContainerStore
from criagent.store.sandboxes import SandboxStore

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class Orphans:
    """What is left of objects whose rows are gone."""

    def __init__(
        self,
        *,
        sandboxes: SandboxStore,
        containers: ContainerStore,
        drivers: SnapshotsByHandler,
        checkpoints: CheckpointLeftovers,
        paths: RuntimePaths,
        fs: Executor,
    ) -> None:
        self._sandboxes = sandboxes
        self._containers = containers
        self._drivers = drivers
        self._checkpoints = checkpoints
        self._paths = paths
        self._fs = fs

    def has_row(self, object_id: str) -> bool:
        """Whether a sandbox or a container has this id."""
        return (
            self._sandboxes.get(object_id) is not None
            or self._containers.get(object_id) is not None
        )

    async def sweep(self) -> None:
        """Take them away."""
        await self._checkpoints.clear_all()
        await self._writable_layers()
        await self._drivers.sweep()
        await run_in(self._fs, self._directories)
        await forget_orphans(self.has_row)

    async def _writable_layers(self) -> None:
        """Those whose container's row never came to be."""
        for snapshot in self._drivers.every():
            own = ID_PATTERN.fullmatch(snapshot.key) is not None
            if own and self._containers.get(snapshot.key) is None:
                part = self._drivers.of_driver(snapshot.driver)
                await part.unmount(self._paths.rootfs(snapshot.key))
                await part.remove(snapshot.key)

    def _directories(self) -> None:
        """Remove directories of the run directory that have no row, and what was unpacked for
        containers that are no longer to be restored.
        """
        for entry in self._paths.restores.iterdir():
            container = self._containers.get(entry.name)
            if container is None or container.started_at_ns or container.finished_at_ns:
                remove_tree(entry)
        for directory, known in (
            (self._paths.run_dir / "sandboxes", self._sandboxes.get),
            (self._paths.run_dir / "containers", self._containers.get),
        ):
            for name in os.listdir(directory) if directory.exists() else ():
                if known(name) is None:
                    entry = directory / name
                    mount.detach_below(entry)
                    shutil.rmtree(entry, ignore_errors=True)
                    log.warning("orphan_removed", path=str(entry))
