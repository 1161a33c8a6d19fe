# SPDX-License-Identifier: Apache-2.0
"""The calls of RuntimeService that return statistics and metrics.

Lists are read, converted and serialized in a thread, and their handlers answer with bytes, so that
a node with a thousand containers delays no other call.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from typing import TYPE_CHECKING, Any

import grpc

from criagent._proto import api_pb2
from criagent.cri.backend import Stats
from criagent.cri.convert.common import selected
from criagent.cri.convert.metrics import descriptors, pod_metrics
from criagent.cri.convert.stats import container_stats, pod_stats
from criagent.cri.listing import framed, pieces
from criagent.cri.visible import visible_container, visible_sandbox
from criagent.model.sandbox import SandboxState
from criagent.runtime.stats.metrics import PodMetrics
from criagent.store.containers import ContainerStore
from criagent.store.sandboxes import SandboxStore

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]


class StatsCalls:
    """Statistics of containers and pods."""

    def __init__(
        self, *, sandboxes: SandboxStore, containers: ContainerStore, stats: Stats
    ) -> None:
        self._sandboxes = sandboxes
        self._containers = containers
        self._readers = stats

    async def ContainerStats(
        self, request: api_pb2.ContainerStatsRequest, context: Context
    ) -> api_pb2.ContainerStatsResponse:
        container = visible_container(self._containers, request.container_id)
        (sample,) = await self._readers.containers.samples([container])
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
        sandbox = visible_sandbox(self._sandboxes, request.pod_sandbox_id)
        (sample,) = await self._readers.pods.samples([sandbox])
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
        reader = self._readers.metrics

        def made(found: PodMetrics) -> bytes:
            return pod_metrics(found).SerializeToString()

        for sandboxes in reader.ready():
            yield await reader.read(sandboxes, made)

    async def _stats(self, wanted: api_pb2.ContainerStatsFilter) -> list[bytes]:
        containers = [
            container
            for container in self._containers.all()
            if container.visible
            and container.id.startswith(wanted.id)
            and container.sandbox_id.startswith(wanted.pod_sandbox_id)
            and selected(container.spec.labels, wanted.label_selector)
        ]
        samples = await self._readers.containers.samples(containers)
        return await self._readers.thread.each(
            samples, lambda sample: container_stats(sample).SerializeToString()
        )

    async def _pod_stats(self, wanted: api_pb2.PodSandboxStatsFilter) -> list[bytes]:
        sandboxes = [
            sandbox
            for sandbox in self._sandboxes.all()
            if sandbox.state is SandboxState.READY
            and sandbox.id.startswith(wanted.id)
            and selected(sandbox.spec.labels, wanted.label_selector)
        ]
        samples = await self._readers.pods.samples(sandboxes)
        return await self._readers.thread.each(
            samples, lambda sample: pod_stats(sample).SerializeToString()
        )


def repeated(parts: Iterable[bytes]) -> bytes:
    """A message of one repeated field with number 1, from the field's serialized messages."""
    return b"".join(map(framed, parts))
