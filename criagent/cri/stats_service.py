"""The calls of RuntimeService that tell statistics and metrics.

Files are read in a thread, and messages made a few at a time, so that a node with a thousand
containers holds up no other call.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import grpc

from criagent._proto import api_pb2
from criagent.cri.convert_common import selected
from criagent.cri.convert_metrics import descriptors, pod_metrics
from criagent.cri.convert_stats import container_stats, pod_stats
from criagent.errors import NotFoundError
from criagent.model import Container, Sandbox, SandboxState
from criagent.runtime.runtime import Runtime

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]
S = TypeVar("S")
T = TypeVar("T")

_CHUNK = 100  # items of a streamed list at once
_AT_ONCE = 40  # messages made before other calls have their turn: about a millisecond


class StatsCalls:
    """Statistics of containers and pods."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    async def ContainerStats(
        self, request: api_pb2.ContainerStatsRequest, context: Context
    ) -> api_pb2.ContainerStatsResponse:
        row = self._visible(request.container_id)
        sample = await self._runtime.container_stats(row.id)
        return api_pb2.ContainerStatsResponse(stats=container_stats(sample))

    async def ListContainerStats(
        self, request: api_pb2.ListContainerStatsRequest, context: Context
    ) -> api_pb2.ListContainerStatsResponse:
        return api_pb2.ListContainerStatsResponse(stats=await self._stats(request.filter))

    async def StreamContainerStats(
        self, request: api_pb2.StreamContainerStatsRequest, context: Context
    ) -> AsyncIterator[api_pb2.StreamContainerStatsResponse]:
        for piece in pieces(await self._stats(request.filter)):
            yield api_pb2.StreamContainerStatsResponse(container_stats=piece)

    async def PodSandboxStats(
        self, request: api_pb2.PodSandboxStatsRequest, context: Context
    ) -> api_pb2.PodSandboxStatsResponse:
        box = self._runtime.sandboxes.resolve(request.pod_sandbox_id)
        if not box.visible:
            raise NotFoundError(f"sandbox {box.id!r} not found")
        (sample,) = await self._runtime.pod_stats.samples([box])
        return api_pb2.PodSandboxStatsResponse(stats=pod_stats(sample))

    async def ListPodSandboxStats(
        self, request: api_pb2.ListPodSandboxStatsRequest, context: Context
    ) -> api_pb2.ListPodSandboxStatsResponse:
        stats = await self._pod_stats(request.filter)
        return api_pb2.ListPodSandboxStatsResponse(stats=stats)

    async def StreamPodSandboxStats(
        self, request: api_pb2.StreamPodSandboxStatsRequest, context: Context
    ) -> AsyncIterator[api_pb2.StreamPodSandboxStatsResponse]:
        for piece in pieces(await self._pod_stats(request.filter)):
            yield api_pb2.StreamPodSandboxStatsResponse(pod_sandbox_stats=piece)

    async def ListMetricDescriptors(
        self, request: api_pb2.ListMetricDescriptorsRequest, context: Context
    ) -> api_pb2.ListMetricDescriptorsResponse:
        return api_pb2.ListMetricDescriptorsResponse(descriptors=descriptors())

    async def ListPodSandboxMetrics(
        self, request: api_pb2.ListPodSandboxMetricsRequest, context: Context
    ) -> api_pb2.ListPodSandboxMetricsResponse:
        response = api_pb2.ListPodSandboxMetricsResponse()
        async for piece in self._metrics():
            response.pod_metrics.extend(piece)
        return response

    async def StreamPodSandboxMetrics(
        self, request: api_pb2.StreamPodSandboxMetricsRequest, context: Context
    ) -> AsyncIterator[api_pb2.StreamPodSandboxMetricsResponse]:
        async for piece in self._metrics():
            yield api_pb2.StreamPodSandboxMetricsResponse(pod_sandbox_metrics=piece)

    async def _metrics(self) -> AsyncIterator[list[api_pb2.PodSandboxMetrics]]:
        reader = self._runtime.pod_metrics
        for boxes in reader.ready():
            yield await reader.read(boxes, pod_metrics)

    async def _stats(self, wanted: api_pb2.ContainerStatsFilter) -> list[api_pb2.ContainerStats]:
        rows = [
            row
            for row in self._runtime.containers.all()
            if row.visible
            and row.id.startswith(wanted.id)
            and row.sandbox_id.startswith(wanted.pod_sandbox_id)
            and selected(row.spec.labels, wanted.label_selector)
        ]
        return await _converted(await self._runtime.list_stats(rows), container_stats)

    async def _pod_stats(
        self, wanted: api_pb2.PodSandboxStatsFilter
    ) -> list[api_pb2.PodSandboxStats]:
        boxes: list[Sandbox] = [
            box
            for box in self._runtime.sandboxes.all()
            if box.state is SandboxState.READY
            and box.id.startswith(wanted.id)
            and selected(box.spec.labels, wanted.label_selector)
        ]
        return await _converted(await self._runtime.pod_stats.samples(boxes), pod_stats)

    def _visible(self, container_id: str) -> Container:
        row = self._runtime.containers.resolve(container_id)
        if not row.visible:
            raise NotFoundError(f"container {row.id!r} not found")
        return row


def pieces(items: list[T]) -> list[list[T]]:
    """`items` in the parts of a streamed list."""
    return [items[at : at + _CHUNK] for at in range(0, len(items), _CHUNK)]


async def _converted(samples: Sequence[S], convert: Callable[[S], T]) -> list[T]:
    made: list[T] = []
    for at in range(0, len(samples), _AT_ONCE):
        if at:
            await asyncio.sleep(0)
        made += [convert(sample) for sample in samples[at : at + _AT_ONCE]]
    return made
