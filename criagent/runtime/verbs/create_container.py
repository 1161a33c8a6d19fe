"""Create a container: row and writable layer, rootfs, OCI specification, conmon and the runtime.

As with sandboxes an owner task does the work, a repeat joins it or gets its result, and each undo
is pushed before its step (docs/architecture.md).
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import structlog

from criagent.base import faults
from criagent.base.aio import Owner, Rollback, run_in
from criagent.base.errors import AlreadyExistsError, NameReservedError, UnsupportedError
from criagent.image.images import Images
from criagent.kernel import process
from criagent.model.container import (
    Container,
    ContainerId,
    ContainerSpec,
    ImageVolume,
)
from criagent.model.image import Image, Snapshot
from criagent.model.sandbox import Sandbox
from criagent.runtime.container.declared_volumes import DeclaredVolumes
from criagent.runtime.container.exits import ExitWatcher
from criagent.runtime.container.files import ContainerFiles
from criagent.runtime.container.gather import SpecGatherer
from criagent.runtime.container.image_volumes import ImageVolumes
from criagent.runtime.container.keys import ContainerName, ContainersMade
from criagent.runtime.node.cgroup_names import CgroupDriver, container_cgroup
from criagent.runtime.node.clock import Clock
from criagent.runtime.node.handlers import check_image_handler
from criagent.runtime.node.paths import RuntimePaths
from criagent.runtime.oci.conmon import Conmon, make_log
from criagent.runtime.oci.runtime import OciRuntime
from criagent.runtime.spec.build import build_spec
from criagent.runtime.spec.id_mappings import check_user
from criagent.runtime.spec.inputs import ResolvedMount, SelinuxLabels
from criagent.runtime.spec.mount_targets import resolve_targets
from criagent.runtime.spec.security.selinux import Selinux
from criagent.runtime.spec.signals import stop_signal
from criagent.runtime.spec.users import resolve_user
from criagent.runtime.spec.validate import validate_container_spec
from criagent.store.containers import ContainerStore

_UNDO_BUDGET_S = 30.0

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ContainerCreator:
    """The CreateContainer verb."""

    store: ContainerStore
    owners: ContainersMade
    images: Images
    volumes: ImageVolumes
    declared: DeclaredVolumes
    files: ContainerFiles
    gatherer: SpecGatherer
    conmon: Conmon
    runtimes: Mapping[str, OciRuntime]
    exits: ExitWatcher
    selinux: Selinux
    paths: RuntimePaths
    driver: CgroupDriver
    default_handler: str
    recursive_read_only: frozenset[str]  # handlers that can make whole mount trees read-only
    clock: Clock
    boot_id: str
    new_id: Callable[[], str]

    async def create(self, sandbox: Sandbox, spec: ContainerSpec) -> Container:
        """The CREATED container of `spec` in `sandbox`, created unless it exists or is being
        created.

        Raises InvalidRequestError, UnsupportedError for what handler or node cannot do,
        NotFoundError for a missing image, also of a volume, AlreadyExistsError when another
        container has the name, AgentError with the OCI runtime's message.
        """
        validate_container_spec(spec, sandbox)
        self._check_handler(sandbox, spec)
        key = ContainerName(sandbox.id, spec.metadata)
        owner = self.owners.get(key)
        if owner is None:
            if (existing := self.store.by_key(str(key))) is not None:
                return _same(existing, spec)
            image = self.images.resolve(spec.image)
            volumes = self.volumes.find(spec)
            owner = self.owners.start(
                key, spec, partial(self._create, sandbox, spec, image, volumes)
            )
        elif owner.fingerprint != spec:
            raise NameReservedError(
                f'container name "{key}" is being created with another configuration '
                f"(stage: {owner.stage})"
            )
        return await self.owners.join(owner)

    def _check_handler(self, sandbox: Sandbox, spec: ContainerSpec) -> None:
        for name in (spec.image_handler, *(m.image.handler for m in spec.mounts if m.image)):
            check_image_handler(name, self.runtimes)
        handler = sandbox.spec.runtime_handler or self.default_handler
        wanted = [m.container_path for m in spec.mounts if m.recursive_read_only]
        if wanted and handler not in self.recursive_read_only:
            raise UnsupportedError(
                f"RROUnsupported: mount {wanted[0][:200]}: recursive read-only mounts need "
                'mount_setattr(2) and an OCI runtime that supports "rro"; handler '
                f'"{handler}" does not offer both'
            )

    async def _create(
        self,
        sandbox: Sandbox,
        spec: ContainerSpec,
        image: Image,
        volumes: tuple[ImageVolume, ...],
        owner: Owner[ContainerName, Container],
    ) -> Container:
        container = dataclasses.replace(self._row(sandbox, spec, image), image_volumes=volumes)
        structlog.contextvars.bind_contextvars(container_id=container.id)
        undo = Rollback("container-create", step_budget_s=_UNDO_BUDGET_S)
        try:
            async with undo:
                container = await self._build(container, sandbox, image, owner, undo)
                undo.commit()
        finally:
            if not undo.clean:
                await self._keep_for_removal(container)
        log.info("container_created", container_id=container.id, sandbox_id=sandbox.id)
        return container

    def _row(self, sandbox: Sandbox, spec: ContainerSpec, image: Image) -> Container:
        container_id = self.new_id()
        log_path = ""
        if sandbox.spec.log_directory and spec.log_path:
            log_path = str(Path(sandbox.spec.log_directory, spec.log_path))
        parent = sandbox.spec.cgroup_parent
        return Container(
            id=ContainerId(container_id),
            sandbox_id=sandbox.id,
            spec=spec,
            created_at_ns=self.clock.now_ns(),
            boot_id=self.boot_id,
            handler=sandbox.spec.runtime_handler or self.default_handler,
            image_id=image.id,
            image_ref=image.repo_digests[0] if image.repo_digests else image.id,
            log_path=log_path,
            image_name=self.images.shown_name(image, spec.user_specified_image or spec.image),
            stop_signal=stop_signal(spec.stop_signal, image.config.stop_signal),
            cgroup=container_cgroup(self.driver, parent, container_id),
            resources=spec.resources,
        )

    async def _build(
        self,
        container: Container,
        sandbox: Sandbox,
        image: Image,
        owner: Owner[ContainerName, Container],
        undo: Rollback,
    ) -> Container:
        owner.stage = "state"
        undo.push("row", partial(self.store.delete, container.id))
        undo.push("files", partial(self.files.remove, container.id, container.cgroup))
        _, snapshot = await asyncio.gather(
            self.store.insert(container), self._snapshot(container, image)
        )
        faults.reach("container-create:row")
        labels, volumes = await self._mount(container, sandbox, image, snapshot, owner)
        owner.stage = "specification"
        user = await run_in(
            self.files.fs,
            resolve_user,
            self.paths.rootfs(container.id),
            container.spec,
            image.config,
        )
        check_user(user, sandbox.spec.security.namespaces.pod_userns)
        container = dataclasses.replace(container, user=user)
        declared = await self.declared.make(container, sandbox, snapshot, image.config.volumes)
        faults.reach("container-create:declared-volumes")
        inputs = await self.gatherer.gather(container, sandbox, image, volumes)
        inputs = dataclasses.replace(inputs, mounts=(*inputs.mounts, *declared))
        await self.selinux.relabel(inputs.mounts, labels)
        inputs = dataclasses.replace(inputs, selinux=labels)
        check_user(
            inputs.user, sandbox.spec.security.namespaces.pod_userns
        )  # CDI devices bring groups
        container = dataclasses.replace(container, user=inputs.user)
        await run_in(self.files.fs, self._write, container, build_spec(inputs))
        faults.reach("container-create:bundle")
        owner.stage = "conmon and the OCI runtime"
        runtime = self.runtimes[container.handler]
        undo.push("runtime", partial(runtime.delete, container.id))
        monitored = await self.conmon.create(container, runtime)
        self.gatherer.check_pid_namespace(container, sandbox)
        faults.reach("container-create:created")
        if sandbox.spec.security.namespaces.pod_userns is not None:
            await self.files.release_mounts(container.id)
        container = dataclasses.replace(
            container,
            monitor=monitored.monitor,
            init=monitored.init,
            cgroup=monitored.cgroup,
            ready_at_ns=self.clock.now_ns(),
        )
        await self.store.update(container)
        self.exits.watch_child(container, monitored.child)
        faults.reach("container-create:ready")
        return container

    async def _mount(
        self,
        container: Container,
        sandbox: Sandbox,
        image: Image,
        snapshot: Snapshot,
        owner: Owner[ContainerName, Container],
    ) -> tuple[SelinuxLabels | None, Mapping[int, ResolvedMount]]:
        """Mount the root file system and the image volumes."""
        owner.stage = "root file system"
        security = container.spec.security
        labels = await self.selinux.labels(
            sandbox, security.selinux, privileged=security.privileged
        )
        label = "" if labels is None else labels.mount
        await self.files.mount_rootfs(container.id, sandbox, snapshot, image, label)
        faults.reach("container-create:mount")
        owner.stage = "image volumes"
        volumes = await self.volumes.mount(container, sandbox, label)
        faults.reach("container-create:volumes")
        return labels, volumes

    async def _snapshot(self, container: Container, image: Image) -> Snapshot:
        parent = image.layers[-1].chain_id if image.layers else ""
        return await self.files.snapshots.create(
            container.id, parent=parent, created_at_ns=container.created_at_ns
        )

    def _write(self, container: Container, spec: dict[str, object]) -> None:
        rootfs = self.paths.rootfs(container.id)
        self.files.write(container.id, resolve_targets(rootfs, spec, container.spec.image))
        if container.log_path:
            make_log(Path(container.log_path))

    async def _keep_for_removal(self, container: Container) -> None:
        """List a container whose undo failed as EXITED, so that the kubelet removes it."""
        kept = self.store.get(container.id)
        if kept is not None:
            now = self.clock.now_ns()
            await self.store.update(
                dataclasses.replace(kept, finished_at_ns=now, exit_code=255, reason="Unknown")
            )
            log.warning("container_kept_for_removal", container_id=container.id)


def _same(existing: Container, spec: ContainerSpec) -> Container:
    created = existing.ready_at_ns and not existing.started_at_ns and not existing.finished_at_ns
    if existing.spec == spec and created and process.alive(existing.init):
        return existing
    raise AlreadyExistsError(
        f'container name "{spec.metadata.name}" attempt {spec.metadata.attempt} is taken by '
        f"{existing.id}; remove it first"
    )
