# SPDX-License-Identifier: Apache-2.0
"""GetContainerEvents: what happens to pods and containers, sent once it is stored.

Every subscriber has a bounded queue. A subscriber that does not keep up is disconnected and has to
list again, which kubelets do by themselves; an unnoticed gap would be worse.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager

from criagent._proto import api_pb2
from criagent.base.errors import ExhaustedError
from criagent.cri.convert.container import pod_containers
from criagent.cri.convert.sandbox import sandbox_status
from criagent.model.container import Container
from criagent.model.sandbox import Sandbox
from criagent.store.containers import ContainerStore
from criagent.store.sandboxes import SandboxStore

_QUEUE = 1000

_Queue = asyncio.Queue["api_pb2.ContainerEventResponse | None"]


class Events:
    """Listens to the stores from its construction on."""

    def __init__(
        self, sandboxes: SandboxStore, containers: ContainerStore, now_ns: Callable[[], int]
    ) -> None:
        self._sandboxes = sandboxes
        self._containers = containers
        self._now_ns = now_ns
        self._queues: set[_Queue] = set()
        self._overrun: set[_Queue] = set()
        self._closed = False
        self.dropped = 0  # subscribers that were too slow
        self._known_sandboxes: dict[str, Sandbox] = {
            sandbox.id: sandbox for sandbox in sandboxes.all()
        }
        self._known_containers: dict[str, Container] = {
            container.id: container for container in containers.all()
        }
        sandboxes.listeners.append(self._sandbox)
        containers.listeners.append(self._container)

    def now_ns(self) -> int:
        """The clock by which events and statuses are ordered."""
        return self._now_ns()

    @property
    def subscribers(self) -> int:
        """The number of subscribers."""
        return len(self._queues)

    @contextmanager
    def subscription(self) -> Iterator[AsyncIterator[api_pb2.ContainerEventResponse]]:
        """Events from now on, until the agent stops; iterating raises ExhaustedError when the
        caller is too slow.
        """
        queue: _Queue = asyncio.Queue(_QUEUE)
        if self._closed:
            queue.put_nowait(None)
        else:
            self._queues.add(queue)
        try:
            yield self._events_of(queue)
        finally:
            self._queues.discard(queue)
            self._overrun.discard(queue)

    async def _events_of(self, queue: _Queue) -> AsyncIterator[api_pb2.ContainerEventResponse]:
        while (event := await queue.get()) is not None:
            yield event
        if queue in self._overrun:
            raise ExhaustedError(
                f"the subscriber fell behind: more than {_QUEUE} events were not read in "
                "time; list, then subscribe again"
            )

    def close(self) -> None:
        """End every subscription."""
        self._closed = True
        for queue in list(self._queues):
            self._end(queue)

    def _container(self, container_id: str, container: Container | None) -> None:
        before = self._known_containers.get(container_id)
        if container is None:
            self._known_containers.pop(container_id, None)
            if before is not None and before.visible:
                self._publish(container_id, before.sandbox_id, api_pb2.CONTAINER_DELETED_EVENT)
            return
        self._known_containers[container_id] = container
        if container.visible and (before is None or not before.visible):
            self._publish(container_id, container.sandbox_id, api_pb2.CONTAINER_CREATED_EVENT)
        if container.started_at_ns and not (before and before.started_at_ns):
            self._publish(container_id, container.sandbox_id, api_pb2.CONTAINER_STARTED_EVENT)
        if container.finished_at_ns and not (before and before.finished_at_ns):
            self._publish(container_id, container.sandbox_id, api_pb2.CONTAINER_STOPPED_EVENT)

    def _sandbox(self, sandbox_id: str, sandbox: Sandbox | None) -> None:
        before = self._known_sandboxes.get(sandbox_id)
        if sandbox is None:
            self._known_sandboxes.pop(sandbox_id, None)
            if before is not None and before.visible:
                self._publish(sandbox_id, sandbox_id, api_pb2.CONTAINER_DELETED_EVENT, before)
            return
        self._known_sandboxes[sandbox_id] = sandbox
        if sandbox.ready_at_ns and not (before and before.ready_at_ns):
            self._publish(sandbox_id, sandbox_id, api_pb2.CONTAINER_CREATED_EVENT)
            self._publish(sandbox_id, sandbox_id, api_pb2.CONTAINER_STARTED_EVENT)
        if sandbox.stopped_at_ns and not (before and before.stopped_at_ns):
            self._publish(sandbox_id, sandbox_id, api_pb2.CONTAINER_STOPPED_EVENT)

    def _publish(
        self,
        object_id: str,
        sandbox_id: str,
        kind: api_pb2.ContainerEventType,
        gone: Sandbox | None = None,
    ) -> None:
        if not self._queues:
            return
        sandbox = gone or self._sandboxes.get(sandbox_id)
        event = api_pb2.ContainerEventResponse(
            container_id=object_id,
            container_event_type=kind,
            created_at=self._now_ns(),
            pod_sandbox_status=None if sandbox is None else sandbox_status(sandbox),
            containers_statuses=pod_containers(self._containers.of_sandbox(sandbox_id)),
        )
        for queue in list(self._queues):
            try:
                queue.put_nowait(event)
            except asyncio.QueueFull:
                self._overrun.add(queue)
                self.dropped += 1
                self._end(queue)

    def _end(self, queue: _Queue) -> None:
        """Put nothing more into `queue`, and let its reader find the end at once."""
        self._queues.discard(queue)
        while not queue.empty():
            queue.get_nowait()
        queue.put_nowait(None)
