# SPDX-License-Identifier: Apache-2.0
"""NRI as verbs see it: each event goes to the plugins in their order, and their answers are used.

Events of different pods run side by side. No lock is held: a plugin that does not answer delays the
pods that it is asked about, each for the plugin's limit at most, and no others.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import Executor

import structlog
from google.protobuf.message import Message

from criagent._proto import nri_pb2
from criagent.base.aio import run_in, supervised
from criagent.base.errors import AgentError
from criagent.model.common import Resources
from criagent.model.container import Container, ContainerState
from criagent.model.sandbox import Sandbox
from criagent.nri import events, resources
from criagent.nri.creation import Creation
from criagent.nri.effects import Effects
from criagent.nri.events import Event
from criagent.nri.messages import container_message
from criagent.nri.oci.adjust import Adjuster
from criagent.nri.owners import ConflictError, Owners
from criagent.nri.registry import Registry
from criagent.nri.state import NodeState, Unlisted
from criagent.nri.updates import Updates
from criagent.nri.validation import Validation
from criagent.runtime.spec.inputs import OciObject

# Requests of every event of a pod have these fields, and those of a container.
_OfPod = nri_pb2.StopPodSandboxRequest
_OfContainer = nri_pb2.StopContainerRequest

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class Relay:
    """The `Plugins` of `criagent.runtime.nri.door` of an agent that has NRI."""

    def __init__(
        self,
        *,
        registry: Registry,
        state: NodeState,
        adjuster: Adjuster,
        validation: Validation,
        effects: Effects,
        fs: Executor,
    ) -> None:
        self._registry = registry
        self._state = state
        self._adjuster = adjuster
        self._validation = validation
        self._effects = effects
        self._fs = fs
        self._unlisted = Unlisted()
        self._stopping: dict[str, asyncio.Task[None]] = {}
        self._stopped: set[str] = set()  # pods and containers of whose end plugins know
        state.sandboxes.listeners.append(self._sandbox_changed)
        state.containers.listeners.append(self._container_changed)

    @property
    def active(self) -> bool:
        """Whether there is a plugin, or a validator that may ask for some."""
        return self._registry.some or self._validation.enabled

    async def known(self) -> tuple[list[nri_pb2.PodSandbox], list[nri_pb2.Container]]:
        """What a new plugin is told; what ended before is not told again."""
        self._stopped |= {
            container.id
            for container in self._state.containers.all()
            if container.state is ContainerState.EXITED
        }
        return await self._state.all(self._unlisted)

    # Pods.

    async def sandbox_run(self, sandbox: Sandbox) -> None:
        """RunPodSandbox."""
        request = _OfPod(pod=self._state.pod(sandbox))
        with self._registry.call() as plugins:
            for plugin in plugins:
                await plugin.ask(events.RUN_POD, request)
            self._unlisted.pods[sandbox.id] = sandbox

    async def sandbox_undone(self, sandbox: Sandbox) -> None:
        """StopPodSandbox and RemovePodSandbox of one that was not READY."""
        self._unlisted.pods.pop(sandbox.id, None)
        await self.sandbox_stopped(sandbox)
        await self.sandbox_removed(sandbox)

    async def sandbox_updating(
        self, sandbox: Sandbox, overhead: Resources | None, given: Resources | None
    ) -> None:
        """UpdatePodSandbox."""
        request = nri_pb2.UpdatePodSandboxRequest(pod=self._state.pod(sandbox))
        if overhead is not None:
            request.overhead_linux_resources.CopyFrom(resources.of_cri(overhead))
        if given is not None:
            request.linux_resources.CopyFrom(resources.of_cri(given))
        with self._registry.call() as plugins:
            for plugin in plugins:
                await plugin.ask(events.UPDATE_POD, request)

    async def sandbox_updated(self, sandbox: Sandbox) -> None:
        """PostUpdatePodSandbox."""
        await self._tell(events.POST_UPDATE_POD, self._about_pod(sandbox))

    async def sandbox_stopped(self, sandbox: Sandbox) -> None:
        """StopPodSandbox, once, after the ends of its containers."""
        containers = self._state.containers.of_sandbox(sandbox.id)
        await asyncio.gather(*(self.container_stopped(container.id) for container in containers))
        if sandbox.id not in self._stopped:
            self._stopped.add(sandbox.id)
            await self._tell(events.STOP_POD, self._about_pod(sandbox))

    async def sandbox_removed(self, sandbox: Sandbox) -> None:
        """RemovePodSandbox."""
        await self._tell(events.REMOVE_POD, self._about_pod(sandbox))

    # Containers.

    async def container_creating(
        self, container: Container, sandbox: Sandbox, spec: OciObject
    ) -> Container:
        """CreateContainer, and its validation."""
        creation = Creation(self._state.pod(sandbox), container_message(container, spec))
        self._unlisted.asked[container.id] = container, spec
        with self._registry.call() as plugins:
            for plugin in plugins:
                answer = await plugin.ask(events.CREATE, creation.request)
                if isinstance(answer, nri_pb2.CreateContainerResponse):
                    try:
                        creation.apply(answer, str(plugin))
                    except ConflictError as conflict:
                        name = container.spec.metadata.name
                        raise AgentError(
                            f"NRI plugins disagree on container {name}: {conflict}"
                        ) from None
            await self._validation.validate(creation, plugins)
            adjust = self._adjuster.adjusted
            adjusted = await run_in(self._fs, adjust, container, sandbox, spec, creation)
            self._unlisted.containers[container.id] = adjusted, spec
        await self._effects.cause(creation.updates.all, creation.evictions, "CreateContainer")
        if by := creation.adjusted_by:
            log.info("nri_container_adjusted", container_id=container.id, plugins=by)
        return adjusted

    async def container_undone(self, container_id: str) -> None:
        """StopContainer and RemoveContainer of one that was not CREATED."""
        entry = self._unlisted.take(container_id)
        if entry is None:
            return  # it failed before plugins were asked
        container, spec = entry
        self._stopped.add(container_id)
        message = container_message(container, spec)
        message.state = nri_pb2.CONTAINER_STOPPED
        request = _OfContainer(pod=self._state.pod_of(container), container=message)
        await self._stop(_ready(request))
        await self._tell(events.REMOVE, _ready(request))

    async def container_created(self, container: Container) -> None:
        """PostCreateContainer."""
        await self._tell(events.POST_CREATE, self._about(container))
        self._unlisted.take(container.id)

    async def container_starting(self, container: Container) -> None:
        """StartContainer."""
        with self._registry.call() as plugins:
            if any(plugin.hears(events.START) for plugin in plugins):
                request = await self._about(container)()
                for plugin in plugins:
                    await plugin.ask(events.START, request)

    async def container_started(self, container_id: str) -> None:
        """PostStartContainer."""
        if (container := self._state.containers.get(container_id)) is not None:
            await self._tell(events.POST_START, self._about(container))

    async def container_updating(
        self, container: Container, given: Resources
    ) -> tuple[Resources, OciObject]:
        """UpdateContainer: each plugin sees the limits as those before it have changed them."""
        updates = Updates()
        evictions: list[nri_pb2.ContainerEviction] = []
        wanted = resources.of_cri(given)
        with self._registry.call() as plugins:
            if not any(plugin.hears(events.UPDATE) for plugin in plugins):
                return given, {}
            about = await self._about(container)()
            for plugin in plugins:
                request = nri_pb2.UpdateContainerRequest(
                    pod=about.pod, container=about.container, linux_resources=wanted
                )
                answer = await plugin.ask(events.UPDATE, request)
                if isinstance(answer, nri_pb2.UpdateContainerResponse):
                    _merge(updates, answer.update, str(plugin))
                    evictions += answer.evict
                    wanted = _with_own(updates, container.id, given)
        changed = updates.take(container.id) is not None
        await self._effects.cause(updates.all, evictions, "UpdateContainer")
        if not changed:
            return given, {}
        found = dataclasses.replace(resources.to_cri(wanted), oom_score_adj=given.oom_score_adj)
        return found, resources.available(resources.beyond_cri(wanted), self._adjuster.node)

    async def container_updated(self, container_id: str) -> None:
        """PostUpdateContainer."""
        if (container := self._state.containers.get(container_id)) is not None:
            await self._tell(events.POST_UPDATE, self._about(container))

    async def container_stopped(self, container_id: str) -> None:
        """Return when plugins know of its exit."""
        if (telling := self._stopping.get(container_id)) is not None:
            await asyncio.wait({telling})

    async def container_removed(self, container: Container) -> None:
        """RemoveContainer, after the StopContainer of its exit."""
        await self.container_stopped(container.id)
        await self._tell(events.REMOVE, self._about(container))

    # Telling.

    def _about_pod(self, sandbox: Sandbox) -> Callable[[], Awaitable[_OfPod]]:
        async def make() -> _OfPod:
            return _OfPod(pod=self._state.pod(sandbox))

        return make

    def _about(self, container: Container) -> Callable[[], Awaitable[_OfContainer]]:
        async def make() -> _OfContainer:
            return _OfContainer(
                pod=self._state.pod_of(container),
                container=await self._state.container(container),
            )

        return make

    async def _tell(self, event: Event, request: Callable[[], Awaitable[Message]]) -> None:
        """Plugins hear of what has happened; a refusal changes nothing."""
        with self._registry.call() as plugins:
            if not any(plugin.hears(event) for plugin in plugins):
                return
            made = await request()
            for plugin in plugins:
                try:
                    await plugin.ask(event, made)
                except AgentError as error:
                    _refused(event, error)

    async def _stop(self, request: Callable[[], Awaitable[_OfContainer]]) -> None:
        """StopContainer, to which plugins answer with limits for other containers."""
        updates = Updates()
        with self._registry.call() as plugins:
            if not any(plugin.hears(events.STOP) for plugin in plugins):
                return
            made = await request()
            for plugin in plugins:
                try:
                    answer = await plugin.ask(events.STOP, made)
                    if isinstance(answer, nri_pb2.StopContainerResponse):
                        _merge(updates, answer.update, str(plugin))
                except AgentError as error:
                    _refused(events.STOP, error)
        await self._effects.update(updates.all, "StopContainer")

    # Rows.

    def _sandbox_changed(self, sandbox_id: str, sandbox: Sandbox | None) -> None:
        if sandbox is None or sandbox.visible:
            self._unlisted.pods.pop(sandbox_id, None)
        if sandbox is None:
            self._stopped.discard(sandbox_id)

    def _container_changed(self, container_id: str, container: Container | None) -> None:
        """Exits come from many places; all of them are written to the row."""
        if container is None:
            self._unlisted.take(container_id)
            self._stopped.discard(container_id)
        elif container.finished_at_ns and self._registry.some and container_id not in self._stopped:
            self._stopped.add(container_id)
            task = supervised(self._stop(self._about(container)), name="nri-stop")
            self._stopping[container_id] = task
            task.add_done_callback(lambda _: self._stopping.pop(container_id, None))


def _ready(request: _OfContainer) -> Callable[[], Awaitable[_OfContainer]]:
    async def made() -> _OfContainer:
        return request

    return made


def _merge(updates: Updates, given: Iterable[nri_pb2.ContainerUpdate], plugin: str) -> None:
    """Add what a plugin asks for. Raises AgentError when another has asked for something else."""
    try:
        updates.apply(given, plugin)
    except ConflictError as conflict:
        raise AgentError(f"NRI plugins disagree on an update: {conflict}") from None


def _with_own(updates: Updates, container_id: str, given: Resources) -> nri_pb2.LinuxResources:
    """The limits that CRI asked for, as plugins have changed them."""
    wanted = resources.of_cri(given)
    if (own := updates.of(container_id)) is not None:
        resources.merge(
            own.linux.resources,
            wanted,
            owners=Owners(),
            container_id=container_id,
            plugin="",
        )
    return wanted


def _refused(event: Event, error: AgentError) -> None:
    log.warning("nri_event_refused", call=event.method, error=str(error))
