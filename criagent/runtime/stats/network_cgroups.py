# SPDX-License-Identifier: Apache-2.0
"""Empty cgroups through which cAdvisor finds the networks of pods.

cAdvisor reads a pod's network counters from /proc/PID/net/dev, of the process that a container
runtime names for the cgroup of the pod's sandbox. A sandbox here has no process and no cgroup, so
one is created beside the pod's containers. It stays empty. Its process is the container that has
been running longest; when that one ends, the cgroup is created again, because cAdvisor asks only
once. A sandbox that shares a PID namespace has a holder with a cgroup of that name, and a sandbox
on the node's network has no network of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
from concurrent.futures import Executor

import structlog

from criagent.base.aio import Background, run_in
from criagent.kernel import cgroupfs, process
from criagent.model.common import NamespaceMode, ProcessRef
from criagent.model.container import Container, ContainerState
from criagent.model.sandbox import Sandbox, SandboxState
from criagent.runtime.node.cgroup_names import CgroupDriver, container_cgroup
from criagent.store.containers import ContainerStore
from criagent.store.sandboxes import SandboxStore

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class NetworkCgroups:
    """The cgroups of all sandboxes. They follow the stores from `start` to `close`.

    A crash leaves empty directories; `clear` at the next start removes them.
    """

    def __init__(
        self,
        *,
        sandboxes: SandboxStore,
        containers: ContainerStore,
        driver: CgroupDriver,
        fs: Executor,
    ) -> None:
        self._sandboxes = sandboxes
        self._containers = containers
        self._driver = driver
        self._fs = fs
        self._processes: dict[str, ProcessRef] = {}
        self._made: dict[str, str] = {}  # paths by sandbox
        self._sandbox_of: dict[str, str] = {}  # by container, whose row may be gone
        self._pending: set[str] = set()
        self._wake = asyncio.Event()
        self._following = Background("network-cgroups")

    async def clear(self) -> None:
        """Remove cgroups of an earlier daemon. To be called before recovery removes rows."""
        cgroups = [self._cgroup(sandbox) for sandbox in self._sandboxes.all() if _apt(sandbox)]
        await run_in(self._fs, _remove_all, cgroups)

    def start(self) -> None:
        """Create the cgroups of running pods, and follow changes from now on."""
        self._pending.update(sandbox.id for sandbox in self._sandboxes.all())
        for container in self._containers.all():
            self._sandbox_of[container.id] = container.sandbox_id
        self._sandboxes.listeners.append(self._sandbox_changed)
        self._containers.listeners.append(self._container_changed)
        self._wake.set()
        self._following.start(self._follow)

    async def close(self) -> None:
        """Stop following. The cgroups stay, like the containers."""
        await self._following.stop()

    def process(self, sandbox: Sandbox) -> ProcessRef | None:
        """The process whose network is the sandbox's; None while there is none for cAdvisor to
        read.
        """
        return sandbox.holder or self._processes.get(sandbox.id)

    def _sandbox_changed(self, sandbox_id: str, _: Sandbox | None) -> None:
        self._notice(sandbox_id)

    def _container_changed(self, container_id: str, container: Container | None) -> None:
        if container is None:
            sandbox_id = self._sandbox_of.pop(container_id, "")
        else:
            sandbox_id = self._sandbox_of[container_id] = container.sandbox_id
        self._notice(sandbox_id)

    def _notice(self, sandbox_id: str) -> None:
        self._pending.add(sandbox_id)
        self._wake.set()

    async def _follow(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._pending:
                sandbox_id = self._pending.pop()
                try:
                    await self._settle(sandbox_id)
                except OSError as error:  # cAdvisor lacks one pod's network; pods are not affected
                    log.warning(
                        "network_cgroup_not_changed", sandbox_id=sandbox_id, error=str(error)
                    )

    async def _settle(self, sandbox_id: str) -> None:
        """Bring the cgroup in line with the rows."""
        sandbox = self._sandboxes.get(sandbox_id)
        found = None if sandbox is None else self._longest_running(sandbox)
        if found == self._processes.get(sandbox_id):
            return
        if (made := self._made.pop(sandbox_id, None)) is not None:
            await run_in(self._fs, cgroupfs.remove, made)
        self._processes.pop(sandbox_id, None)
        if sandbox is None or found is None:
            return
        self._processes[sandbox_id] = found  # before cAdvisor sees the cgroup and asks
        self._made[sandbox_id] = self._cgroup(sandbox)
        await run_in(self._fs, _make, self._made[sandbox_id])

    def _longest_running(self, sandbox: Sandbox) -> ProcessRef | None:
        if not _apt(sandbox) or sandbox.state is not SandboxState.READY:
            return None
        running = [
            (container.started_at_ns, container.id, container.init)
            for container in self._containers.of_sandbox(sandbox.id)
            if container.state is ContainerState.RUNNING and process.alive(container.init)
        ]
        return min(running)[2] if running else None

    def _cgroup(self, sandbox: Sandbox) -> str:
        return container_cgroup(self._driver, sandbox.spec.cgroup_parent, sandbox.id)


def _apt(sandbox: Sandbox) -> bool:
    """Whether the sandbox has its own network and no holder."""
    network = sandbox.spec.security.namespaces.network
    return sandbox.holder is None and network is not NamespaceMode.NODE


def _make(cgroup: str) -> None:
    cgroupfs.directory(cgroup).mkdir(exist_ok=True)


def _remove_all(cgroups: list[str]) -> None:
    for cgroup in cgroups:
        with contextlib.suppress(OSError):  # of a pod whose cgroup does not exist
            cgroupfs.directory(cgroup).rmdir()
