# SPDX-License-Identifier: Apache-2.0
"""Create a container: row and writable layer, bundle, conmon and the runtime, in that order.

As with sandboxes an owner task does the work, a repeat joins it or gets its result, and each undo
is pushed before its step (docs/architecture.md).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import structlog

from criagent.base import faults
from criagent.base.aio import Owner, Rollback, both
from criagent.base.errors import (
    AlreadyExistsError,
    InvalidRequestError,
    NameReservedError,
    WrongStateError,
)
from criagent.image.images import Images
from criagent.kernel import process
from criagent.model.common import Resources
from criagent.model.container import Container, ContainerId, ContainerSpec, ImageVolume
from criagent.model.image import Image
from criagent.model.sandbox import Sandbox
from criagent.runtime.container.bundle import ContainerBundles
from criagent.runtime.container.erasure import left_for_removal
from criagent.runtime.container.files import ContainerFiles
from criagent.runtime.container.image_volumes import ImageVolumes
from criagent.runtime.container.keys import ContainerCreations, ContainerName
from criagent.runtime.container.launch import ContainerLauncher
from criagent.runtime.node.cgroup_names import CgroupDriver, container_cgroup
from criagent.runtime.node.clock import Identities
from criagent.runtime.node.handlers import Handlers
from criagent.runtime.node.workloads import Workloads
from criagent.runtime.nri.door import Plugins
from criagent.runtime.spec.layer_limits import LayerLimits
from criagent.runtime.spec.signals import stop_signal
from criagent.runtime.spec.validate import validate_container_spec
from criagent.store.containers import ContainerStore
from criagent.store.sandboxes import SandboxStore

_UNDO_BUDGET_S = 30.0

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    """What CreateContainer was asked for, with what is on the node for it."""

    sandbox: Sandbox
    spec: ContainerSpec
    handler: str
    image: Image
    volumes: tuple[ImageVolume, ...]
    limit_bytes: int  # of the writable layer, 0 = none
    resources: Resources  # with those of the pod's workload


class NewContainers:
    """Rows of new containers: images by the names that were asked for, identity, cgroup."""

    def __init__(
        self,
        *,
        images: Images,
        volumes: ImageVolumes,
        handlers: Handlers,
        driver: CgroupDriver,
        identities: Identities,
        layer_limits: LayerLimits,
        workloads: Workloads,
    ) -> None:
        self._layer_limits = layer_limits
        self._workloads = workloads
        self._images = images
        self._volumes = volumes
        self._handlers = handlers
        self._driver = driver
        self._identities = identities

    def now_ns(self) -> int:
        """The time for a row."""
        return self._identities.now_ns()

    def check(self, sandbox: Sandbox, spec: ContainerSpec) -> str:
        """The name of the handler that is to run a container of `spec`.

        Raises WrongStateError, InvalidRequestError, UnsupportedError if node or handler cannot run
        it.
        """
        handler = self._handlers.of_pod(sandbox.spec.runtime_handler)
        validate_container_spec(spec, sandbox)
        for name in (spec.image_handler, *(m.image.handler for m in spec.mounts if m.image)):
            self._handlers.check_image(name)
        handler.require_namespaces(spec.security.namespaces.pid, spec.security.namespaces.ipc)
        handler.require_memory(spec.metadata.name, spec.resources.memory_limit_in_bytes)
        for mount in spec.mounts:
            if mount.recursive_read_only:
                handler.require_recursive_read_only(mount.container_path)
        return handler.name

    async def unpack(self, request: _Request) -> None:
        """Unpack the images for the handler's storage driver, where it does not have them.

        Raises NotFoundError when their blobs are not kept and cannot be pulled.
        """
        volumes = (self._images.resolve(volume.image_id) for volume in request.volumes)
        for image in (request.image, *volumes):
            await self._images.unpack_for(image, request.handler)

    def request(self, sandbox: Sandbox, spec: ContainerSpec, handler: str) -> _Request:
        """Raises NotFoundError if the image, or the image of a volume, is not on the node, and
        InvalidRequestError for an artifact as the image and an annotation that is not a limit."""
        image = self._images.resolve(spec.image, handler)
        if image.artifact:
            raise InvalidRequestError(
                f'image "{spec.user_specified_image or spec.image}" is an OCI artifact '
                f"({image.artifact}), not a container image; mount it as an image volume"
            )
        return _Request(
            sandbox=sandbox,
            spec=spec,
            handler=handler,
            image=image,
            volumes=self._volumes.find(spec, handler),
            limit_bytes=self._layer_limits.of(sandbox.spec, spec),
            resources=self._workloads.resources(sandbox.spec, spec.metadata.name, spec.resources),
        )

    def container(self, request: _Request) -> Container:
        """A new container with an identity of its own."""
        identity, image, spec = self._identities.next(), request.image, request.spec
        log_path, of_pod = "", request.sandbox.spec
        if of_pod.log_directory and spec.log_path:
            log_path = str(Path(of_pod.log_directory, spec.log_path))
        return Container(
            id=ContainerId(identity.id),
            sandbox_id=request.sandbox.id,
            spec=spec,
            created_at_ns=identity.at_ns,
            boot_id=identity.boot_id,
            handler=request.handler,
            image_id=image.id,
            image_ref=(*image.all_digests, image.id)[0],
            image_volumes=request.volumes,
            log_path=log_path,
            image_name=self._images.shown_name(image, spec.user_specified_image or spec.image),
            stop_signal=stop_signal(spec.stop_signal, image.config.stop_signal),
            cgroup=container_cgroup(self._driver, of_pod.cgroup_parent, identity.id),
            resources=request.resources,
        )


class ContainerCreator:
    """The CreateContainer verb."""

    def __init__(
        self,
        *,
        sandboxes: SandboxStore,
        store: ContainerStore,
        making: ContainerCreations,
        new: NewContainers,
        files: ContainerFiles,
        bundles: ContainerBundles,
        launcher: ContainerLauncher,
        plugins: Plugins,
    ) -> None:
        self._sandboxes = sandboxes
        self._store = store
        self._making = making
        self._new = new
        self._files = files
        self._bundles = bundles
        self._launcher = launcher
        self._plugins = plugins

    async def create(self, sandbox_id: str, spec: ContainerSpec) -> Container:
        """Return the CREATED container of `spec`, which is created unless it exists or is being
        created. The sandbox's stored configuration counts.

        Raises NotFoundError for an unknown sandbox, and if the image, or the image of a volume, is
        not on the node; WrongStateError for a sandbox that is not ready, and while a program that
        the container needs cannot be used; InvalidRequestError, UnsupportedError for what handler
        or node cannot do; AlreadyExistsError if another container has the name, NameReservedError
        while one of another configuration is being created; TimedOutError; AgentError with the OCI
        runtime's text.
        """
        sandbox = self._sandboxes.resolve(sandbox_id)
        if not sandbox.ready_at_ns or sandbox.stopped_at_ns:
            raise WrongStateError(f'sandbox "{sandbox.id}" is not ready: it was stopped')
        handler = self._new.check(sandbox, spec)
        name = ContainerName(sandbox.id, spec.metadata)
        owner = self._making.get(name)
        if owner is None:
            if (existing := self._store.by_key(str(name))) is not None:
                return _same(existing, spec)
            request = self._new.request(sandbox, spec, handler)
            owner = self._making.start(name, spec, partial(self._create, request))
        elif owner.fingerprint != spec:
            raise NameReservedError(
                f'container name "{name}" is being made with another configuration '
                f"(stage: {owner.stage})"
            )
        return await self._making.join(owner)

    async def _create(self, request: _Request, owner: Owner[ContainerName, Container]) -> Container:
        container = self._new.container(request)
        structlog.contextvars.bind_contextvars(container_id=container.id)
        container = await self._undoable(container, partial(self._build, container, request, owner))
        log.info("container_created", container_id=container.id, sandbox_id=container.sandbox_id)
        return container

    async def _undoable(
        self, container: Container, build: Callable[[Rollback], Awaitable[Container]]
    ) -> Container:
        undo = Rollback("container-create", step_budget_s=_UNDO_BUDGET_S)
        try:
            async with undo:
                built = await build(undo)
                undo.commit()
        finally:
            if not undo.clean:
                await self.list_for_removal(container.id)
        return built

    async def _build(
        self,
        container: Container,
        request: _Request,
        owner: Owner[ContainerName, Container],
        undo: Rollback,
    ) -> Container:
        container = await self._lay_out(container, request, owner, undo)
        owner.stage = "conmon and the OCI runtime"
        undo.push("runtime", partial(self._launcher.delete, container))
        container, monitor = await self._launcher.create(container, request.sandbox)
        container = dataclasses.replace(container, ready_at_ns=self._new.now_ns())
        await self._store.update(container)
        self._launcher.watch(container, monitor)
        faults.reach("container-create:ready")
        if self._plugins.active:
            await self._plugins.container_created(container)
        return container

    async def prepare(
        self, sandbox: Sandbox, spec: ContainerSpec, owner: Owner[Any, Any]
    ) -> Container:
        """Everything of a container but its processes, which StartContainer is to restore; for a
        sandbox that is not ready yet. `finish` is the last step. Raises as `create`.
        """
        request = self._new.request(sandbox, spec, self._new.check(sandbox, spec))
        container = dataclasses.replace(self._new.container(request), restored=True)
        return await self._undoable(container, partial(self._lay_out, container, request, owner))

    async def finish(self, container: Container) -> None:
        """The container that `prepare` has made is CREATED."""
        container = dataclasses.replace(container, ready_at_ns=self._new.now_ns())
        await self._store.update(container)
        if self._plugins.active:
            await self._plugins.container_created(container)

    async def _lay_out(
        self, container: Container, request: _Request, owner: Owner[Any, Any], undo: Rollback
    ) -> Container:
        """Row, writable layer and bundle."""
        sandbox, image = request.sandbox, request.image
        owner.stage = "unpacking the image"
        await self._new.unpack(request)
        owner.stage = "state"
        undo.push("row", partial(self._store.delete, container.id))
        undo.push("files", partial(self._remove_files, container))
        _, layer = await both(
            self._store.insert(container),
            self._files.make_layer(container, image, request.limit_bytes),
        )
        faults.reach("container-create:row")
        undo.push("plugins", partial(self._plugins.container_undone, container.id))
        requested = container
        container = await self._bundles.make(
            container, sandbox, image=image, snapshot=layer, owner=owner
        )
        if container.cgroup != requested.cgroup:  # an NRI plugin has moved it
            await self._store.update(container)
        return container

    async def _remove_files(self, container: Container) -> None:
        now = self._store.get(container.id) or container  # an NRI plugin may have moved it
        await self._files.remove(container.id, now.cgroup)

    async def list_for_removal(self, container_id: str) -> None:
        """List a container whose undo failed."""
        left = self._store.get(container_id)
        if left is not None:
            fields = left_for_removal(self._new.now_ns())
            await self._store.update(dataclasses.replace(left, **fields))
            log.warning("container_left_for_removal", container_id=container_id)


def _same(existing: Container, spec: ContainerSpec) -> Container:
    created = existing.ready_at_ns and not existing.started_at_ns and not existing.finished_at_ns
    if existing.spec == spec and created and process.alive(existing.init):
        return existing
    raise AlreadyExistsError(
        f'container name "{spec.metadata.name}" attempt {spec.metadata.attempt} is taken by '
        f"{existing.id}; remove it first"
    )
