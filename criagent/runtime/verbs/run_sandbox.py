"""Run a pod sandbox: row, namespaces, network, files, shared-PID holder, in that order.

The row is written before the first kernel object exists, and every kernel object is found from the
sandbox id alone. A crash at any line therefore leaves a row from which `pod/teardown.py` undoes the
rest. The work belongs to an owner task by metadata: a caller that gives up loses nothing, and a
repeat with equal configuration joins the task or gets its finished sandbox.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial

import structlog

from criagent.base import faults
from criagent.base.aio import Owner, Owners, Rollback
from criagent.base.errors import (
    AlreadyExistsError,
    InvalidRequestError,
    NameReservedError,
    UnsupportedError,
)
from criagent.base.os_errors import about
from criagent.model.common import NamespaceMode
from criagent.model.sandbox import Sandbox, SandboxId, SandboxMetadata, SandboxSpec
from criagent.net.pod_network import Networks
from criagent.runtime.node.clock import Clock
from criagent.runtime.pod.files import PodFileWriter
from criagent.runtime.pod.holder_watch import HolderWatch
from criagent.runtime.pod.namespaces import PodNamespaces
from criagent.runtime.pod.pid_holder import SandboxHolder
from criagent.runtime.pod.teardown import SandboxTeardown
from criagent.runtime.spec.security.selinux import Selinux
from criagent.runtime.spec.validate import validate_sandbox_spec
from criagent.store.sandboxes import SandboxStore

_UNDO_BUDGET_S = 30.0  # per step; a step that needs longer is left to recovery

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SandboxRunner:
    """The RunPodSandbox verb."""

    store: SandboxStore
    owners: Owners[SandboxMetadata, Sandbox]
    networks: Networks
    namespaces: PodNamespaces
    files: PodFileWriter
    holder: SandboxHolder
    watch: HolderWatch
    teardown: SandboxTeardown
    handlers: frozenset[str]
    userns_problems: Mapping[
        str, str
    ]  # why a handler does not support user namespaces, "" = it does
    default_handler: str
    selinux: Selinux
    clock: Clock
    boot_id: str
    new_id: Callable[[], str]

    async def run(self, spec: SandboxSpec) -> Sandbox:
        """Return the READY sandbox of `spec`, which is created unless it exists or is being
        created.

        Raises InvalidRequestError, AlreadyExistsError when a sandbox of another configuration or a
        stopped one has the name, NameReservedError while such a one is being created.
        """
        validate_sandbox_spec(spec)
        if spec.runtime_handler and spec.runtime_handler not in self.handlers:
            raise InvalidRequestError(
                f'runtime handler "{spec.runtime_handler}" is not configured; configured '
                f"are {sorted(self.handlers)}"
            )
        handler = spec.runtime_handler or self.default_handler
        if spec.security.namespaces.pod_userns is not None and self.userns_problems[handler]:
            raise UnsupportedError(
                f'runtime handler "{handler}" cannot run pods with user namespaces on this node: '
                f"{self.userns_problems[handler]}"
            )
        name = spec.metadata
        owner = self.owners.get(name)
        if owner is None:
            existing = self.store.by_key(name.key)
            if existing is not None and existing.visible:
                return _same(existing, spec)
            owner = self.owners.start(name, spec, partial(self._run, spec, existing))
        elif owner.fingerprint != spec:
            raise NameReservedError(
                f'sandbox name "{owner.name}" is being made with another configuration '
                f"(stage: {owner.stage})"
            )
        return await self.owners.join(owner)

    async def _run(
        self, spec: SandboxSpec, remains: Sandbox | None, owner: Owner[SandboxMetadata, Sandbox]
    ) -> Sandbox:
        if remains is not None:  # a failed undo, on a disk that did not even accept its mark
            owner.stage = "remains of a failed attempt"
            await self.teardown.erase(remains)
        sandbox = Sandbox(
            id=SandboxId(self.new_id()),
            spec=spec,
            created_at_ns=self.clock.now_ns(),
            boot_id=self.boot_id,
            selinux_level=self.selinux.level(spec, self.store.all()),
            network_backend=self._backend(spec),
        )
        structlog.contextvars.bind_contextvars(sandbox_id=sandbox.id)
        undo = Rollback("sandbox-run", step_budget_s=_UNDO_BUDGET_S)
        try:
            async with undo:
                sandbox = await self._build(sandbox, owner, undo)
                undo.commit()
        except BaseException as error:
            if not undo.clean and await self.teardown.mark_lost(sandbox.id):
                error.add_note(f"sandbox {sandbox.id} is listed as NOTREADY; remove it")
            raise
        log.info("sandbox_started", **sandbox.spec.metadata.facts, ips=sandbox.addresses)
        return sandbox

    async def _build(
        self, sandbox: Sandbox, owner: Owner[SandboxMetadata, Sandbox], undo: Rollback
    ) -> Sandbox:
        owner.stage = "state"
        undo.push("row", partial(self.store.delete, sandbox.id))
        await self.store.insert(sandbox)
        faults.reach("sandbox-run:row")
        owner.stage = "namespaces"
        undo.push("files", partial(self.files.remove, sandbox.id))
        undo.push("namespaces", partial(self.namespaces.remove, sandbox.id))
        await self.namespaces.create(sandbox)
        faults.reach("sandbox-run:namespaces")
        if sandbox.network_backend:
            owner.stage = "network"
            undo.push("network", partial(self.teardown.detach, sandbox))
            attachment = await self.networks.for_row(sandbox).attach(
                sandbox, self.namespaces.netns(sandbox)
            )
            sandbox = dataclasses.replace(
                sandbox, addresses=attachment.addresses, cni_result=attachment.cni_result
            )
            faults.reach("sandbox-run:network")
        owner.stage = "pod files"
        with about(self.files.paths.sandbox(sandbox.id)):
            await self.files.write(sandbox)
        faults.reach("sandbox-run:files")
        if sandbox.spec.security.namespaces.pid is NamespaceMode.POD:
            owner.stage = "shared PID namespace"
            undo.push("holder", partial(self.holder.remove, sandbox))
            with about(self.files.paths.sandbox(sandbox.id)):
                sandbox = dataclasses.replace(sandbox, holder=await self.holder.start(sandbox))
            faults.reach("sandbox-run:holder")
        owner.stage = "commit"
        sandbox = dataclasses.replace(sandbox, ready_at_ns=self.clock.now_ns())
        await self.store.update(sandbox)
        self.watch.watch(sandbox)
        faults.reach("sandbox-run:ready")
        return sandbox

    def _backend(self, spec: SandboxSpec) -> str:
        host = spec.security.namespaces.network is NamespaceMode.NODE
        return "" if host else self.networks.default.backend


def _same(existing: Sandbox, spec: SandboxSpec) -> Sandbox:
    if existing.spec == spec and existing.ready_at_ns and not existing.stopped_at_ns:
        return existing
    state = "stopped" if existing.stopped_at_ns else "of another configuration"
    raise AlreadyExistsError(
        f'sandbox name "{spec.metadata.key}" is taken by {existing.id} ({state}); remove it first'
    )
