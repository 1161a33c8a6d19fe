# SPDX-License-Identifier: Apache-2.0
"""Which containers can be checkpointed, and what is known of them."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor

from criagent.base.aio import run_in
from criagent.base.errors import InvalidRequestError, UnsupportedError, WrongStateError
from criagent.model.common import NamespaceMode
from criagent.model.container import Container
from criagent.model.sandbox import Sandbox
from criagent.runtime.checkpoint.documents import Subject
from criagent.runtime.container.files import ContainerFiles
from criagent.runtime.container.keys import Act, Ending, Endings
from criagent.runtime.container.running import running
from criagent.runtime.node.handlers import Handlers, no_longer_configured
from criagent.store.containers import ContainerStore
from criagent.store.sandboxes import SandboxStore


class Subjects:
    """Reads and judges."""

    def __init__(
        self,
        *,
        containers: ContainerStore,
        sandboxes: SandboxStore,
        endings: Endings,
        handlers: Handlers,
        files: ContainerFiles,
        fs: Executor,
    ) -> None:
        self._containers = containers
        self._sandboxes = sandboxes
        self._endings = endings
        self._handlers = handlers
        self._files = files
        self._fs = fs

    def running(self, container_id: str) -> Container:
        """The container, if it can be checkpointed now.

        Raises NotFoundError, WrongStateError, UnsupportedError.
        """
        container = running(self._containers, container_id)
        facts = self._handlers.by_name.get(container.handler)
        if facts is None:
            raise no_longer_configured(container.handler)
        facts.require_checkpoints()
        stopping = self._endings.get(Ending(Act.STOP_CONTAINER, container.id)) is not None
        if stopping or container.stop_deadline_boot_ns:
            raise WrongStateError(f"container {container.id} is being stopped")
        return container

    def of_pod(
        self, sandbox_id: str, container_ids: Sequence[str]
    ) -> tuple[Sandbox, list[Container]]:
        """The pod and its containers of these ids, if they can be checkpointed now.

        Raises as `running`, and InvalidRequestError for a bad list.
        """
        sandbox = self._sandboxes.resolve(sandbox_id)
        if not sandbox.ready_at_ns or sandbox.stopped_at_ns:
            raise WrongStateError(f'sandbox "{sandbox.id}" is not ready: it was stopped')
        if not container_ids:
            raise InvalidRequestError("container_ids is empty")
        containers = [self.running(container_id) for container_id in container_ids]
        if len({container.id for container in containers}) != len(containers):
            raise InvalidRequestError("container_ids has a container twice")
        for container in containers:
            if container.sandbox_id != sandbox.id:
                raise InvalidRequestError(
                    f"container {container.id} does not belong to sandbox {sandbox.id}"
                )
            if container.spec.security.namespaces.pid is not NamespaceMode.CONTAINER:
                raise UnsupportedError(
                    f"container {container.id} shares a PID namespace; a pod can be checkpointed "
                    "if each container has one of its own"
                )
        if sandbox.spec.security.namespaces.pod_userns is not None:
            raise UnsupportedError("a pod with a user namespace cannot be checkpointed")
        return sandbox, containers

    async def read(self, container: Container) -> Subject:
        """What its documents say. Raises NotFoundError when its sandbox is gone, OSError."""
        spec = await run_in(self._fs, self._files.spec, container.id)
        sandbox = self._sandboxes.resolve(container.sandbox_id)
        return Subject(container=container, sandbox=sandbox, spec=spec)
