# SPDX-License-Identifier: Apache-2.0
"""Which containers can be checkpointed, and what is known of them."""

from __future__ import annotations

from concurrent.futures import Executor

from criagent.base.aio import run_in
from criagent.base.errors import WrongStateError
from criagent.model.container import Container
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

    async def read(self, container: Container) -> Subject:
        """What its documents say. Raises NotFoundError when its sandbox is gone, OSError."""
        spec = await run_in(self._fs, self._files.spec, container.id)
        sandbox = self._sandboxes.resolve(container.sandbox_id)
        return Subject(container=container, sandbox=sandbox, spec=spec)
