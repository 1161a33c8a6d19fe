# SPDX-License-Identifier: Apache-2.0
"""Run a pod sandbox: row, files, namespaces, network, shared-PID holder, in that order.

The row is written before the first kernel object exists, and every kernel object is found from
the sandbox id alone. A crash at any line therefore leaves a row from which `pod/teardown.py`
undoes the rest. The work belongs to an owner task by metadata: a caller that gives up loses
nothing, and a repeat with equal configuration joins the task or gets its finished sandbox.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable
from functools import partial

import structlog

from criagent.base import faults
from criagent.base.aio import Owner, Owners, Rollback, both
from criagent.base.errors import AlreadyExistsError, NameReservedError
from criagent.model.common import NamespaceMode, ProfileType
from criagent.model.sandbox import Sandbox, SandboxId, SandboxMetadata, SandboxSpec
from criagent.runtime.node.clock import Identities
from criagent.runtime.node.handlers import Handlers
from criagent.runtime.nri.door import Plugins
from criagent.runtime.pod.holder_watch import HolderWatch
from criagent.runtime.pod.objects import SandboxObjects
from criagent.runtime.pod.teardown import SandboxTeardown
from criagent.runtime.spec.security.selinux import Selinux
from criagent.runtime.spec.validate import validate_sandbox_spec
from criagent.store.sandboxes import SandboxStore

_UNDO_BUDGET_S = 30.0  # per step; a sandbox whose undo takes longer is listed as NOTREADY

SandboxCreations = Owners[SandboxMetadata, Sandbox]

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NewSandboxes:
    """Rows of new sandboxes."""

    store: SandboxStore
    objects: SandboxObjects
    selinux: Selinux
    identities: Identities
    require_profile: Callable[[str], object]  # SecurityProfiles.require

    def sandbox(self, spec: SandboxSpec) -> Sandbox:
        """A sandbox that is about to be made.

        Raises NotFoundError for a security profile that was not pulled, though no process uses it.
        """
        seccomp = spec.security.seccomp
        if seccomp is not None and seccomp.type is ProfileType.OCI:
            self.require_profile(seccomp.oci_ref)
        identity = self.identities.next()
        return Sandbox(
            id=SandboxId(identity.id),
            spec=spec,
            created_at_ns=identity.at_ns,
            boot_id=identity.boot_id,
            selinux_level=self.selinux.level(spec, self.store.all()),
            network_backend=self.objects.backend(spec),
        )

    def ready(self, sandbox: Sandbox) -> Sandbox:
        """The sandbox, complete."""
        return dataclasses.replace(sandbox, ready_at_ns=self.identities.now_ns())


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """Containers that a sandbox has from its first moment (RestorePod).

    `make` is called before the sandbox is ready, and pushes undos; `lost` is called when one of
    them fails. `request` is what was asked for besides the sandbox's configuration.
    """

    request: object
    make: Callable[[Sandbox, Owner[SandboxMetadata, Sandbox], Rollback], Awaitable[None]]
    lost: Callable[[SandboxId], Awaitable[None]]
    limit_s: float


class SandboxRunner:
    """The RunPodSandbox verb."""

    def __init__(
        self,
        *,
        store: SandboxStore,
        making: SandboxCreations,
        handlers: Handlers,
        objects: SandboxObjects,
        watch: HolderWatch,
        teardown: SandboxTeardown,
        new: NewSandboxes,
        plugins: Plugins,
    ) -> None:
        self._store = store
        self._making = making
        self._handlers = handlers
        self._objects = objects
        self._watch = watch
        self._teardown = teardown
        self._new = new
        self._plugins = plugins

    async def run(self, spec: SandboxSpec, contents: Contents | None = None) -> Sandbox:
        """Return the READY sandbox of `spec`, which is created unless it exists or is being
        created.

        Raises InvalidRequestError, WrongStateError while a program that its containers need cannot
        be used, UnsupportedError for what its handler cannot do, AlreadyExistsError when a sandbox
        of another configuration or a stopped one has the name, NameReservedError while one
        of another configuration is being created.
        """
        handler = self._handlers.resolve(spec.runtime_handler)
        validate_sandbox_spec(spec)
        if spec.security.namespaces.pod_userns is not None:
            handler.require_user_namespaces()
        handler.require_namespaces(spec.security.namespaces.pid, spec.security.namespaces.ipc)
        name = spec.metadata
        request = (spec, None if contents is None else contents.request)
        owner = self._making.get(name)
        if owner is None:
            existing = self._store.by_key(name.key)
            if existing is not None and existing.visible:
                return _same(existing, spec)
            work = partial(self._run, spec, existing, contents)
            limit_s = None if contents is None else contents.limit_s
            owner = self._making.start(name, request, work, limit_s)
        elif owner.fingerprint != request:
            raise NameReservedError(
                f'sandbox name "{owner.name}" is being made with another configuration '
                f"(stage: {owner.stage})"
            )
        return await self._making.join(owner)

    async def _run(
        self,
        spec: SandboxSpec,
        remains: Sandbox | None,
        contents: Contents | None,
        owner: Owner[SandboxMetadata, Sandbox],
    ) -> Sandbox:
        if remains is not None:  # an undo failed, and the disk refused to mark the sandbox
            owner.stage = "remains of a failed attempt"
            await self._teardown.erase(remains)
        sandbox = self._new.sandbox(spec)
        structlog.contextvars.bind_contextvars(sandbox_id=sandbox.id)
        undo = Rollback("sandbox-run", step_budget_s=_UNDO_BUDGET_S)
        try:
            async with undo:
                sandbox = await self._build(sandbox, contents, owner, undo)
                undo.commit()
        except BaseException as error:
            if not undo.clean and await self._teardown.mark_lost(sandbox.id):
                error.add_note(f"sandbox {sandbox.id} is listed as NOTREADY; remove it")
                if contents is not None:
                    await contents.lost(sandbox.id)
            raise
        log.info("sandbox_started", **sandbox.spec.metadata.facts, ips=sandbox.addresses)
        return sandbox

    async def _build(
        self,
        sandbox: Sandbox,
        contents: Contents | None,
        owner: Owner[SandboxMetadata, Sandbox],
        undo: Rollback,
    ) -> Sandbox:
        owner.stage = "state"
        undo.push("row", partial(self._store.delete, sandbox.id))
        if sandbox.network_backend:
            undo.push("addresses", partial(self._objects.release, sandbox))
            await both(self._store.insert(sandbox), self._objects.reserve(sandbox))
        else:
            await self._store.insert(sandbox)
        faults.reach("sandbox-run:row")
        owner.stage = "files and namespaces"
        undo.push("files", partial(self._objects.remove_files, sandbox.id))
        undo.push("namespaces", partial(self._objects.remove_namespaces, sandbox.id))
        await self._objects.make_namespaces(sandbox)
        faults.reach("sandbox-run:namespaces")
        if sandbox.network_backend:
            owner.stage = "network"
            undo.push("network", partial(self._objects.detach, sandbox))
            sandbox = await self._objects.attach(sandbox)
            faults.reach("sandbox-run:network")
        own_kernel = self._handlers.of_pod(sandbox.spec.runtime_handler).own_kernel
        if sandbox.spec.security.namespaces.pid is NamespaceMode.POD and not own_kernel:
            owner.stage = "shared PID namespace"
            undo.push("holder", partial(self._objects.remove_holder, sandbox))
            sandbox = await self._objects.start_holder(sandbox)
            faults.reach("sandbox-run:holder")
        undo.push("plugins", partial(self._plugins.sandbox_undone, sandbox))
        if self._plugins.active:
            owner.stage = "NRI plugins"
            await self._plugins.sandbox_run(sandbox)
        faults.reach("sandbox-run:plugins")
        if contents is not None:
            await contents.make(sandbox, owner, undo)
        owner.stage = "commit"
        sandbox = self._new.ready(sandbox)
        await self._store.update(sandbox)
        self._watch.watch(sandbox)
        faults.reach("sandbox-run:ready")
        return sandbox


def _same(existing: Sandbox, spec: SandboxSpec) -> Sandbox:
    if existing.spec == spec and existing.ready_at_ns and not existing.stopped_at_ns:
        return existing
    state = "stopped" if existing.stopped_at_ns else "of another configuration"
    raise AlreadyExistsError(
        f'sandbox name "{spec.metadata.key}" is taken by {existing.id} ({state}); remove it first'
    )
