"""Brings rows and kernel back into agreement when the daemon starts.

Assumptions: every kernel object of this agent is named by an id that has a row, unless its row was
lost; a row of another boot has no living object; containers and their monitors kept running.

Each object is handled alone, under a time limit, and one that cannot be handled is marked and
skipped, never fatal. Containers without a row are ended first, objects without a row are removed
last. Calls are refused until then.
"""

from __future__ import annotations

import asyncio
import dataclasses
import shutil
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from typing import TypeVar

import structlog

from criagent.base.aio import run_in
from criagent.image.snapshots.overlay import OverlaySnapshots
from criagent.kernel import mount
from criagent.model.common import ID_PATTERN
from criagent.model.container import Container
from criagent.model.sandbox import Sandbox
from criagent.net.pod_network import Networks
from criagent.runtime.node.clock import Clock
from criagent.runtime.node.paths import RuntimePaths
from criagent.runtime.oci.failed_scopes import forget_orphans
from criagent.runtime.pod.holder_watch import HolderWatch
from criagent.runtime.pod.namespaces import PodNamespaces
from criagent.runtime.pod.pid_holder import SandboxHolder
from criagent.runtime.pod.teardown import SandboxTeardown
from criagent.runtime.recovery.containers import ContainerRecovery
from criagent.runtime.recovery.unknown_containers import UnknownContainers
from criagent.store.containers import ContainerStore
from criagent.store.sandboxes import SandboxStore

_ITEM_LIMIT_S = 10.0
_AT_ONCE = 32

R = TypeVar("R", Sandbox, Container)

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """Runs once, before the first call is served."""

    sandboxes: SandboxStore
    containers: ContainerStore
    container_recovery: ContainerRecovery
    networks: Networks
    namespaces: PodNamespaces
    holder: SandboxHolder
    watch: HolderWatch
    teardown: SandboxTeardown
    snapshots: OverlaySnapshots
    paths: RuntimePaths
    clock: Clock
    boot_id: str
    fs: Executor

    async def run(self) -> None:
        """Reconcile everything; afterwards each row is correct.

        Raises AgentError when a container without a row cannot be ended: its files must stay.
        """
        self._raise_clock()
        unknown = UnknownContainers(
            has_row=self._has_row, networks=self.networks, paths=self.paths, fs=self.fs
        )
        await unknown.end()
        unfinished_sandboxes = [sandbox for sandbox in self.sandboxes.all() if not sandbox.visible]
        await self._each("container", self.containers.all(), self._container)
        await self._each("sandbox", unfinished_sandboxes, self._undo_sandbox)
        await self._each("sandbox", [b for b in self.sandboxes.all() if b.visible], self._sandbox)
        live = [sandbox for sandbox in self.sandboxes.all() if not sandbox.released_at_ns]
        await self.networks.reconcile(live)
        await self._orphan_layers()
        await self.snapshots.sweep()
        await run_in(self.fs, self._sweep)
        await forget_orphans(self._has_row)
        log.info(
            "recovered", sandboxes=len(self.sandboxes.all()), containers=len(self.containers.all())
        )

    def _raise_clock(self) -> None:
        times = [sandbox.created_at_ns for sandbox in self.sandboxes.all()]
        times += [container.created_at_ns for container in self.containers.all()]
        self.clock.raise_floor(max(times, default=0))

    async def _each(
        self, noun: str, containers: Sequence[R], handle: Callable[[R], Awaitable[None]]
    ) -> None:
        gate = asyncio.Semaphore(_AT_ONCE)

        async def one(container: R) -> None:
            async with gate:
                try:
                    async with asyncio.timeout(_ITEM_LIMIT_S):
                        await handle(container)
                except Exception as failure:
                    log.exception(
                        "recovery_failed", object=noun, id=container.id, error=repr(failure)
                    )

        await asyncio.gather(*(one(container) for container in containers))

    async def _container(self, container: Container) -> None:
        await self.container_recovery.recover(container)

    async def _undo_sandbox(self, sandbox: Sandbox) -> None:
        """Undo a run that a crash cut short: no caller has its id."""
        try:
            await self.teardown.erase(sandbox)
        except Exception:
            await self.teardown.mark_lost(sandbox.id)
            raise

    async def _sandbox(self, sandbox: Sandbox) -> None:
        if sandbox.released_at_ns:
            return
        if sandbox.stopped_at_ns or sandbox.boot_id != self.boot_id:
            await self.teardown.release(sandbox)
            return
        userns = sandbox.spec.security.namespaces.pod_userns
        gid = None if userns is None else userns.root_gid
        await run_in(self.fs, self.paths.make_sandbox, sandbox.id, gid)
        if not await self.namespaces.intact(sandbox) or not self.holder.alive(sandbox):
            log.warning("sandbox_lost", sandbox_id=sandbox.id, **sandbox.spec.metadata.facts)
            await self.teardown.mark_stopped(sandbox)
        else:
            self.watch.watch(sandbox)

    async def _orphan_layers(self) -> None:
        """Writable layers whose container's row was never written."""
        for snapshot in self.snapshots.store.all():
            own = ID_PATTERN.fullmatch(snapshot.key) is not None
            if own and self.containers.get(snapshot.key) is None:
                await self.snapshots.unmount(self.paths.rootfs(snapshot.key))
                await self.snapshots.remove(snapshot.key)

    def _has_row(self, object_id: str) -> bool:
        return (
            self.sandboxes.get(object_id) is not None or self.containers.get(object_id) is not None
        )

    def _sweep(self) -> None:
        """Remove directories of the run directory that have no row."""
        for directory, known in (
            (self.paths.run_dir / "sandboxes", self.sandboxes.get),
            (self.paths.run_dir / "containers", self.containers.get),
        ):
            for entry in directory.iterdir() if directory.exists() else ():
                if known(entry.name) is None:
                    mount.detach_below(entry)
                    shutil.rmtree(entry, ignore_errors=True)
                    log.warning("orphan_swept", path=str(entry))
