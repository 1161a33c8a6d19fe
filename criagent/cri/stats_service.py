"""The calls of RuntimeService that return statistics and metrics.

Lists are read, converted and serialized in a thread, and their handlers answer with bytes, so that
a node with a thousand containers delays no other call.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

import grpc

from criagent._proto import api_pb2
from criagent.base.errors import NotFoundError
from criagent.cri.convert.common import selected
from criagent.cri.convert.metrics import descriptors, pod_metrics
from criagent.cri.convert.stats import container_stats, pod_stats
from criagent.cri.listing import framed
from criagent.model.container import Container
from criagent.model.sandbox import SandboxState
from criagent.runtime.runtime import Runtime
from criagent.runtime.stats.metrics import PodMetrics

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]
T = TypeVar("T")

_CHUNK = 100  # items of a streamed list at once


class StatsCalls:
    """Statistics of containers and pods."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    async def ContainerStats(
        self, request: api_pb2.ContainerStatsRequest, context: Context
    ) -> api_pb2.ContainerStatsResponse:
        container = self._visible(request.container_id)
        sample = await self._runtime.container_stats(container.id)
        return api_pb2.ContainerStatsResponse(stats=container_stats(sample))

    async def ListContainerStats(
        self, request: api_pb2.ListContainerStatsRequest, context: Context
    ) -> bytes:
        return repeated(await self._stats(request.filter))

    async def StreamContainerStats(
        self, request: api_pb2.StreamContainerStatsRequest, context: Context
    ) -> AsyncIterator[bytes]:
        for piece in pieces(await self._stats(request.filter)):
            yield repeated(piece)

    async def PodSandboxStats(
        self, request: api_pb2.PodSandboxStatsRequest, context: Context
    ) -> api_pb2.PodSandboxStatsResponse:
        sandbox = self._runtime.sandboxes.resolve(request.pod_sandbox_id)
        if not sandbox.visible:
            raise NotFoundError(f"sandbox {sandbox.id!r} not found")
        (sample,) = await self._runtime.pod_stats.samples([sandbox])
        return api_pb2.PodSandboxStatsResponse(stats=pod_stats(sample))

    async def ListPodSandboxStats(
        self, request: api_pb2.ListPodSandboxStatsRequest, context: Context
    ) -> bytes:
        return repeated(await self._pod_stats(request.filter))

    async def StreamPodSandboxStats(
        self, request: api_pb2.StreamPodSandboxStatsRequest, context: Context
    ) -> AsyncIterator[bytes]:
        for piece in pieces(await self._pod_stats(request.filter)):
            yield repeated(piece)

    async def ListMetricDescriptors(
        self, request: api_pb2.ListMetricDescriptorsRequest, context: Context
    ) -> api_pb2.ListMetricDescriptorsResponse:
        return api_pb2.ListMetricDescriptorsResponse(descriptors=descriptors())

    async def ListPodSandboxMetrics(
        self, request: api_pb2.ListPodSandboxMetricsRequest, context: Context
    ) -> bytes:
        return b"".join([repeated(piece) async for piece in self._metrics()])

    async def StreamPodSandboxMetrics(
        self, request: api_pb2.StreamPodSandboxMetricsRequest, context: Context
    ) -> AsyncIterator[bytes]:
        async for piece in self._metrics():
            yield repeated(piece)

    async def _metrics(self) -> AsyncIterator[list[bytes]]:
        reader = self._runtime.pod_metrics

        def made(found: PodMetrics) -> bytes:
            return pod_metrics(found).SerializeToString()

        for sandboxes in reader.ready():
            yield await reader.read(sandboxes, made)

    async def _stats(self, wanted: api_pb2.ContainerStatsFilter) -> list[bytes]:
        containers = [
            container
            for container in self._runtime.containers.all()
            if container.visible
            and container.id.startswith(wanted.id)
            and container.sandbox_id.startswith(wanted.pod_sandbox_id)
            and selected(container.spec.labels, wanted.label_selector)
        ]
        samples = await self._runtime.list_stats(containers)
        return await self._runtime.stats.converted(
            samples, lambda sample: container_stats(sample).SerializeToString()
        )

    async def _pod_stats(self, wanted: api_pb2.PodSandboxStatsFilter) -> list[bytes]:
        sandboxes = [
            sandbox
            for sandbox in self._runtime.sandboxes.all()
            if sandbox.state is SandboxState.READY
            and sandbox.id.startswith(wanted.id)
            and selected(sandbox.spec.labels, wanted.label_selector)
        ]
        samples = await self._runtime.pod_stats.samples(sandboxes)
        return await self._runtime.stats.converted(
            samples, lambda sample: pod_stats(sample).SerializeToString()
        )

    def _visible(self, container_id: str) -> Container:
        container = self._runtime.containers.resolve(container_id)
        if not container.visible:
            raise NotFoundError(f"container {container.id!r} not found")
        return container


def pieces(items: list[T]) -> list[list[T]]:
    """`items` in the chunks of a streamed list."""
    return [items[at : at + _CHUNK] for at in range(0, len(items), _CHUNK)]


def repeated(parts: Iterable[bytes]) -> bytes:
    """A message of one repeated field with number 1, from the field's serialized messages."""
    return b"".join(map(framed, parts))
