"""The runtime as the CRI services see it: every verb behind one object, and nothing else."""

from __future__ import annotations

import asyncio
import dataclasses
import os
from collections.abc import Sequence
from typing import Any

from criagent.base.aio import Owners, run_in
from criagent.base.errors import UnsupportedError, WrongStateError
from criagent.kernel import cgroupfs
from criagent.model.common import Resources
from criagent.model.container import Container, ContainerSpec
from criagent.model.sandbox import Sandbox, SandboxMetadata, SandboxSpec
from criagent.net.pod_network import Networks
from criagent.runtime.container.exits import ExitWatcher
from criagent.runtime.container.files import ContainerFiles
from criagent.runtime.container.keys import ContainersMade, Endings, Starts
from criagent.runtime.node.cgroup_names import DEFAULT_PARENT, CgroupDriver
from criagent.runtime.node.handlers import HandlerFacts
from criagent.runtime.node.paths import RuntimePaths
from criagent.runtime.recovery.recovery import Recovery
from criagent.runtime.spec.security.apparmor import AppArmor
from criagent.runtime.stats.container import ContainerStatsReader, StatsSample
from criagent.runtime.stats.metrics import PodMetricsReader
from criagent.runtime.stats.pod import PodStatsReader
from criagent.runtime.verbs.attach import Attacher
from criagent.runtime.verbs.create_container import ContainerCreator
from criagent.runtime.verbs.exec_stream import ExecStreamer
from criagent.runtime.verbs.exec_sync import ExecResult, ExecSync
from criagent.runtime.verbs.port_forward import PortForwarder
from criagent.runtime.verbs.remove_container import ContainerRemover
from criagent.runtime.verbs.remove_sandbox import SandboxRemover
from criagent.runtime.verbs.reopen_log import LogReopener
from criagent.runtime.verbs.run_sandbox import SandboxRunner
from criagent.runtime.verbs.start_container import ContainerStarter
from criagent.runtime.verbs.stop_container import ContainerStopper
from criagent.runtime.verbs.stop_sandbox import SandboxStopper
from criagent.runtime.verbs.update_container import ResourceUpdater
from criagent.store.containers import ContainerStore
from criagent.store.db import Database
from criagent.store.sandboxes import SandboxStore


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """Verbs of pods and containers. Ids may be unique prefixes everywhere."""

    sandboxes: SandboxStore
    containers: ContainerStore
    networks: Networks
    paths: RuntimePaths
    handlers: tuple[HandlerFacts, ...]
    cgroup_driver: CgroupDriver
    runner: SandboxRunner
    sandbox_stopper: SandboxStopper
    sandbox_remover: SandboxRemover
    files: ContainerFiles
    creator: ContainerCreator
    starter: ContainerStarter
    stopper: ContainerStopper
    remover: ContainerRemover
    executor: ExecSync
    streamer: ExecStreamer
    attacher: Attacher
    forwarder: PortForwarder
    reopener: LogReopener
    updater: ResourceUpdater
    stats: ContainerStatsReader
    pod_stats: PodStatsReader
    pod_metrics: PodMetricsReader
    exits: ExitWatcher
    apparmor: AppArmor
    recovery: Recovery
    sandbox_owners: Owners[SandboxMetadata, Sandbox]
    container_owners: ContainersMade
    starts: Starts
    endings: Endings
    db: Database
    monitor_problem: str = ""  # why conmon cannot be used, "" = it can

    async def run_pod_sandbox(self, spec: SandboxSpec) -> Sandbox:
        """RunPodSandbox: see `SandboxRunner.run`.

        Raises WrongStateError while a program that its containers need cannot be used.
        """
        self._require(spec.runtime_handler)
        return await self.runner.run(spec)

    async def stop_pod_sandbox(self, sandbox_id: str) -> None:
        """StopPodSandbox: see `SandboxStopper.stop`."""
        await self.sandbox_stopper.stop(sandbox_id)

    async def remove_pod_sandbox(self, sandbox_id: str) -> None:
        """RemovePodSandbox: see `SandboxRemover.remove`."""
        await self.sandbox_remover.remove(sandbox_id)

    async def create_container(self, sandbox_id: str, spec: ContainerSpec) -> Container:
        """CreateContainer in a READY sandbox, whose own specification counts.

        Raises NotFoundError for an unknown sandbox, WrongStateError for one that is not ready,
        and what `ContainerCreator.create` raises.
        """
        sandbox = self.sandboxes.resolve(sandbox_id)
        if not sandbox.ready_at_ns or sandbox.stopped_at_ns:
            raise WrongStateError(f'sandbox "{sandbox.id}" is not ready: it was stopped')
        self._require(sandbox.spec.runtime_handler)
        return await self.creator.create(sandbox, spec)

    async def start_container(self, container_id: str) -> None:
        """StartContainer: see `ContainerStarter.start`."""
        await self.starter.start(container_id)

    async def stop_container(self, container_id: str, timeout_s: int) -> None:
        """StopContainer: see `ContainerStopper.stop`."""
        await self.stopper.stop(container_id, timeout_s)

    async def remove_container(self, container_id: str) -> None:
        """RemoveContainer: see `ContainerRemover.remove`."""
        await self.remover.remove(container_id)

    async def exec_sync(self, container_id: str, cmd: Sequence[str], timeout_s: int) -> ExecResult:
        """ExecSync: see `ExecSync.run`."""
        return await self.executor.run(container_id, cmd, timeout_s)

    async def reopen_log(self, container_id: str) -> None:
        """ReopenContainerLog: see `LogReopener.reopen`."""
        await self.reopener.reopen(container_id)

    async def update_resources(self, container_id: str, resources: Resources) -> None:
        """UpdateContainerResources: see `ResourceUpdater.update`."""
        await self.updater.update(container_id, resources)

    async def container_stats(self, container_id: str) -> StatsSample:
        """ContainerStats of one container. Raises NotFoundError."""
        return await self.stats.sample(self.containers.resolve(container_id))

    async def list_stats(self, containers: Sequence[Container]) -> list[StatsSample]:
        """Statistics of `containers`, read from the kernel's files without a fork."""
        return await self.stats.samples(containers)

    async def describe(self, container: Container) -> dict[str, Any]:
        """Facts for a verbose status: pid, handler, the OCI specification while it exists."""
        facts: dict[str, Any] = {
            "sandboxID": container.sandbox_id,
            "pid": container.init.pid if container.init and not container.finished_at_ns else 0,
            "runtimeType": container.handler,
            "cgroup": container.cgroup,
        }
        try:
            spec = await run_in(self.files.fs, self.files.spec, container.id)
            facts["runtimeSpec"] = self.updater.in_force(container, spec)
        except FileNotFoundError:
            facts["runtimeSpec"] = None
        return facts

    @property
    def problem(self) -> str:
        """Why no pod of the default handler can run; "" = they can. Checks the programs."""
        return self._problem_of(self.creator.default_handler)

    async def unready(self) -> tuple[str, str]:
        """Reason and message of a false RuntimeReady; both empty when it is true."""
        if problem := self.problem:
            return "ProgramNotUsable", problem
        if failure := await self.db.failure():
            return "StorageFailing", failure
        return "", ""

    def _problem_of(self, handler: str) -> str:
        """The problem found at the start, or a program that has disappeared since."""
        chosen = [facts for facts in self.handlers if facts.name == handler]
        found = [*(facts.problem for facts in chosen), self.monitor_problem]
        if not any(found):
            programs = (*(facts.path for facts in chosen), self.creator.conmon.program)
            found = [
                f"{program} can no longer be executed; install it again"
                for program in programs
                if not os.access(program, os.X_OK)
            ]
        return "; ".join(text for text in found if text)

    def _require(self, handler: str) -> None:
        if problem := self._problem_of(handler or self.creator.default_handler):
            raise WrongStateError(f"this node cannot run containers: {problem}")

    def prepare(self) -> None:
        """Create the fixed directories and the cgroup of pods that name no parent; synchronous.

        Raises UnsupportedError without cgroup v2.
        """
        if not cgroupfs.unified():
            raise UnsupportedError(
                "/sys/fs/cgroup is not cgroup v2 (v1 and hybrid layouts are not supported); "
                "boot with systemd.unified_cgroup_hierarchy=1 and run `criagent doctor`"
            )
        self.paths.prepare()
        for facts in self.handlers:
            self.paths.runtime_root(facts.name).mkdir(exist_ok=True, mode=0o700)
        if self.cgroup_driver is CgroupDriver.CGROUPFS:
            cgroupfs.make(DEFAULT_PARENT)

    async def recover(self) -> None:
        """Reconcile rows and kernel; must end before any call is served."""
        await self.apparmor.prepare()
        await self.recovery.run()

    async def stop(self, limit_s: float) -> None:
        """Finish verbs in progress within `limit_s`; containers and their monitors keep running."""
        await asyncio.gather(
            self.sandbox_owners.drain(limit_s),
            self.container_owners.drain(limit_s),
            self.starts.drain(limit_s),
            self.endings.drain(limit_s),
            self.reopener.close(limit_s),
        )
        await self.recovery.watch.close()
        await self.exits.close()
        await self.stats.close()
