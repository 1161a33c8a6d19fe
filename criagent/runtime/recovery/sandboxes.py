# SPDX-License-Identifier: Apache-2.0
"""One sandbox after a restart: still ready, released, or its unfinished run undone."""

from __future__ import annotations

import structlog

from criagent.model.sandbox import Sandbox
from criagent.runtime.node.paths import RuntimePaths
from criagent.runtime.pod.holder_watch import HolderWatch
from criagent.runtime.pod.objects import SandboxObjects
from criagent.runtime.pod.teardown import SandboxTeardown

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class SandboxRecovery:
    """Handles rows one by one; `Recovery` gives each its time limit."""

    def __init__(
        self,
        *,
        objects: SandboxObjects,
        watch: HolderWatch,
        teardown: SandboxTeardown,
        paths: RuntimePaths,
        boot_id: str,
    ) -> None:
        self._objects = objects
        self._watch = watch
        self._teardown = teardown
        self._paths = paths
        self._boot_id = boot_id

    async def undo(self, sandbox: Sandbox) -> None:
        """Undo a run that a crash cut short: no caller has its id."""
        try:
            await self._teardown.erase(sandbox)
        except Exception:
            await self._teardown.mark_lost(sandbox.id)
            raise

    async def recover(self, sandbox: Sandbox) -> None:
        """Make the row of a finished run true."""
        if sandbox.released_at_ns:
            return
        if sandbox.stopped_at_ns or sandbox.boot_id != self._boot_id:
            await self._teardown.release(sandbox)
            return
        userns = sandbox.spec.security.namespaces.pod_userns
        gid = None if userns is None else userns.root_gid
        # A few calls on a tmpfs, while no other call is served: a thread would take longer.
        self._paths.make_sandbox(sandbox.id, gid)
        if self._objects.intact(sandbox):
            self._watch.watch(sandbox)
            return
        log.warning("sandbox_lost", sandbox_id=sandbox.id, **sandbox.spec.metadata.facts)
        await self._teardown.mark_stopped(sandbox)
