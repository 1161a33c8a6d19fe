# SPDX-License-Identifier: Apache-2.0
"""The OCI bundle of a new container: root file system, volumes, user, specification."""

from __future__ import annotations

import dataclasses
from concurrent.futures import Executor
from functools import partial
from pathlib import Path
from typing import Any

from criagent.base import faults
from criagent.base.aio import Owner, run_in
from criagent.model.container import Container, ContainerUser
from criagent.model.image import Image, Snapshot
from criagent.model.sandbox import Sandbox
from criagent.runtime.container.declared_volumes import DeclaredVolumes
from criagent.runtime.container.files import ContainerFiles
from criagent.runtime.container.gather import Found, SpecGatherer
from criagent.runtime.container.image_volumes import ImageVolumes
from criagent.runtime.node.handlers import HandlerFacts, Handlers
from criagent.runtime.nri.door import Plugins
from criagent.runtime.oci.conmon import make_log
from criagent.runtime.spec.build import build_spec
from criagent.runtime.spec.id_mappings import check_user
from criagent.runtime.spec.inputs import SelinuxLabels
from criagent.runtime.spec.mounts.targets import resolve_targets
from criagent.runtime.spec.security.selinux import Selinux
from criagent.runtime.spec.users import resolve_user


class ContainerBundles:
    """Makes bundles; `ContainerFiles.remove` takes one away from any half-state."""

    def __init__(
        self,
        *,
        files: ContainerFiles,
        volumes: ImageVolumes,
        declared: DeclaredVolumes,
        gatherer: SpecGatherer,
        handlers: Handlers,
        selinux: Selinux,
        plugins: Plugins,
        fs: Executor,
    ) -> None:
        self._handlers = handlers
        self._files = files
        self._volumes = volumes
        self._declared = declared
        self._gatherer = gatherer
        self._selinux = selinux
        self._plugins = plugins
        self._fs = fs

    async def make(
        self,
        container: Container,
        sandbox: Sandbox,
        *,
        image: Image,
        snapshot: Snapshot,
        owner: Owner[Any, Any],
    ) -> Container:
        """Everything that the OCI runtime's `create` needs; the row with the container's user and
        with what NRI plugins changed.

        `snapshot` is the writable layer. Raises InvalidRequestError and UnsupportedError for what
        image, node or handler cannot give, AgentError.
        """
        userns = sandbox.spec.security.namespaces.pod_userns
        owner.stage = "root file system"
        labels = await self._labels(container, sandbox)
        label = "" if labels is None else labels.mount
        await self._files.mount_rootfs(
            container.id, sandbox, image=image, snapshot=snapshot, label=label
        )
        faults.reach("container-create:mount")
        owner.stage = "image volumes"
        volumes = await self._volumes.mount(container, sandbox, label)
        faults.reach("container-create:volumes")
        owner.stage = "specification"
        handler = self._handlers.by_name[container.handler]
        look = partial(self._look, container, sandbox, image=image, handler=handler)
        user, found = await run_in(self._fs, look)
        check_user(user, userns)
        container = dataclasses.replace(container, user=user)
        declared = await self._declared.make(container, sandbox, snapshot, image.config.volumes)
        faults.reach("container-create:declared-volumes")
        inputs = await self._gatherer.gather(
            container, sandbox, image=image, volumes=volumes, found=found
        )
        inputs = dataclasses.replace(
            inputs,
            mounts=(*inputs.mounts, *declared),
            selinux=labels,
            own_kernel=handler.own_kernel,
            annotations=handler.annotations.of(sandbox.spec, container.spec),
        )
        await self._selinux.relabel(inputs.mounts, labels)
        check_user(inputs.user, userns)  # CDI devices bring groups
        container, spec = dataclasses.replace(container, user=inputs.user), build_spec(inputs)
        if self._plugins.active:
            owner.stage = "NRI plugins"
            container = await self._plugins.container_creating(container, sandbox, spec)
        faults.reach("container-create:plugins")
        await run_in(self._fs, self._write, container, spec)
        faults.reach("container-create:bundle")
        return container

    def _look(
        self, container: Container, sandbox: Sandbox, *, image: Image, handler: HandlerFacts
    ) -> tuple[ContainerUser, Found]:
        """What files of the image, and of the node, say about the container."""
        rootfs = self._files.rootfs(container.id)
        user = resolve_user(rootfs, container.spec, image.config)
        return user, self._gatherer.look(container, sandbox, image=image, handler=handler)

    async def _labels(self, container: Container, sandbox: Sandbox) -> SelinuxLabels | None:
        security = container.spec.security
        return await self._selinux.labels(sandbox, security.selinux, privileged=security.privileged)

    def _write(self, container: Container, spec: dict[str, object]) -> None:
        rootfs = self._files.rootfs(container.id)
        self._files.write(container.id, resolve_targets(rootfs, spec, container.spec.image))
        if container.log_path:
            make_log(Path(container.log_path))
