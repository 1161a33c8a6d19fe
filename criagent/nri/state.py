# SPDX-License-Identifier: Apache-2.0
"""What plugins are told of the node: its pods and containers, and those that are being created."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from pathlib import Path

from criagent._proto import nri_pb2
from criagent.base.aio import run_in
from criagent.model.container import Container, ContainerState
from criagent.model.sandbox import Sandbox
from criagent.nri.messages import container_message, pod_message
from criagent.runtime.spec.inputs import OciObject
from criagent.store.containers import ContainerStore
from criagent.store.sandboxes import SandboxStore

_AT_ONCE = 50  # specifications that a thread reads before it lets others in


class Unlisted:
    """Pods and containers that plugins know of and that no list shows yet."""

    def __init__(self) -> None:
        self.pods: dict[str, Sandbox] = {}
        self.asked: dict[str, tuple[Container, OciObject]] = {}  # some plugins may know of it
        self.containers: dict[str, tuple[Container, OciObject]] = {}  # all of them do

    def take(self, container_id: str) -> tuple[Container, OciObject] | None:
        """Forget a container; what plugins know of it."""
        asked = self.asked.pop(container_id, None)
        return self.containers.pop(container_id, asked)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NodeState:
    """Messages of what there is."""

    sandboxes: SandboxStore
    containers: ContainerStore
    spec: Callable[[str], OciObject]  # the specification of a container; raises OSError
    pins: Callable[[Sandbox], Mapping[str, Path]]  # the namespaces of a pod
    fs: Executor

    def pod(self, sandbox: Sandbox) -> nri_pb2.PodSandbox:
        """The pod with the namespaces that it still has."""
        pins = {} if sandbox.released_at_ns else self.pins(sandbox)
        return pod_message(sandbox, pins)

    def pod_of(self, container: Container) -> nri_pb2.PodSandbox:
        """The container's pod."""
        sandbox = self.sandboxes.get(container.sandbox_id)
        if sandbox is None:
            return nri_pb2.PodSandbox(id=container.sandbox_id)
        return self.pod(sandbox)

    async def container(self, container: Container) -> nri_pb2.Container:
        """The container with its specification, if it still has one."""
        (message,) = await run_in(self.fs, self._messages, [container])
        return message

    async def all(
        self, unlisted: Unlisted
    ) -> tuple[list[nri_pb2.PodSandbox], list[nri_pb2.Container]]:
        """Pods, and containers that have not exited, with those that are about to be listed."""
        pods = {sandbox.id: sandbox for sandbox in self.sandboxes.all() if sandbox.visible}
        listed = [container for container in self.containers.all() if container.visible]
        shown = {container.id for container in listed}
        made = [
            container_message(container, spec)
            for container, spec in unlisted.containers.values()
            if container.id not in shown
        ]
        found = [one for one in listed if one.state is not ContainerState.EXITED]
        for at in range(0, len(found), _AT_ONCE):
            made += await run_in(self.fs, self._messages, found[at : at + _AT_ONCE])
        return [self.pod(sandbox) for sandbox in (unlisted.pods | pods).values()], made

    def _messages(self, containers: list[Container]) -> list[nri_pb2.Container]:
        made = []
        for container in containers:
            spec: OciObject | None = None
            with contextlib.suppress(OSError, ValueError):  # of another boot, or it failed
                spec = self.spec(container.id)
            made.append(container_message(container, spec))
        return made
