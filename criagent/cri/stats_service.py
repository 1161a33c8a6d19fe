# SPDX-License-Identifier: Apache-2.0
"""The calls of RuntimeService that return statistics and metrics.

They are read, converted and serialized in a thread, and their handlers answer with bytes, so that a
node with a thousand containers delays no other call. Every answer is one field with number 1.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import grpc

from criagent._proto import api_pb2
from criagent.cri.backend import Stats
from criagent.cri.convert.common import selected
from criagent.cri.convert.metrics import descriptors, pod_metrics
from criagent.cri.convert.stats import StatsEncoder
from criagent.cri.listing import framed, pieces
from criagent.cri.visible import visible_container, visible_sandbox
from criagent.model.sandbox import SandboxState
from criagent.runtime.stats.container import StatsSample
from criagent.runtime.stats.metrics import PodMetrics
from criagent.runtime.stats.pod import PodSample
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
        self._encoder = StatsEncoder(self._listed)
        sandboxes.listeners.append(self._changed)
        containers.listeners.append(self._changed)

    async def ContainerStats(
        self, request: api_pb2.ContainerStatsRequest, context: Context
    ) -> bytes:
        container = visible_container(self._containers, request.container_id)
        return b"".join(await self._readers.containers.read([container], self._container))

    async def ListContainerStats(
        self, request: api_pb2.ListContainerStatsRequest, context: Context
    ) -> bytes:
        return b"".join(await self._stats(request.filter))

    async def StreamContainerStats(
        self, request: api_pb2.StreamContainerStatsRequest, context: Context
    ) -> AsyncIterator[bytes]:
        for piece in pieces(await self._stats(request.filter)):
            yield b"".join(piece)

    async def PodSandboxStats(
        self, request: api_pb2.PodSandboxStatsRequest, context: Context
    ) -> bytes:
        sandbox = visible_sandbox(self._sandboxes, request.pod_sandbox_id)
        return b"".join(await self._readers.pods.read([sandbox], self._pod))

    async def ListPodSandboxStats(
        self, request: api_pb2.ListPodSandboxStatsRequest, context: Context
    ) -> bytes:
        return b"".join(await self._pod_stats(request.filter))

    async def StreamPodSandboxStats(
        self, request: api_pb2.StreamPodSandboxStatsRequest, context: Context
    ) -> AsyncIterator[bytes]:
        for piece in pieces(await self._pod_stats(request.filter)):
            yield b"".join(piece)

    async def ListMetricDescriptors(
        self, request: api_pb2.ListMetricDescriptorsRequest, context: Context
    ) -> api_pb2.ListMetricDescriptorsResponse:
        return api_pb2.ListMetricDescriptorsResponse(descriptors=descriptors())

    async def ListPodSandboxMetrics(
        self, request: api_pb2.ListPodSandboxMetricsRequest, context: Context
    ) -> bytes:
        return b"".join([item async for piece in self._metrics() for item in piece])

    async def StreamPodSandboxMetrics(
        self, request: api_pb2.StreamPodSandboxMetricsRequest, context: Context
    ) -> AsyncIterator[bytes]:
        async for piece in self._metrics():
            yield b"".join(piece)

    async def _metrics(self) -> AsyncIterator[list[bytes]]:
        reader = self._readers.metrics

        def made(found: PodMetrics) -> bytes:
            return framed(pod_metrics(found).SerializeToString())

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
        return await self._readers.containers.read(containers, self._container)

    async def _pod_stats(self, wanted: api_pb2.PodSandboxStatsFilter) -> list[bytes]:
        sandboxes = [
            sandbox
            for sandbox in self._sandboxes.all()
            if sandbox.state is SandboxState.READY
            and sandbox.id.startswith(wanted.id)
            and selected(sandbox.spec.labels, wanted.label_selector)
        ]
        return await self._readers.pods.read(sandboxes, self._pod)

    def _container(self, sample: StatsSample) -> bytes:
        return framed(self._encoder.container(sample))

    def _pod(self, sample: PodSample) -> bytes:
        return framed(self._encoder.pod(sample))

    def _listed(self, object_id: str) -> bool:
        known = self._containers.get(object_id) or self._sandboxes.get(object_id)
        return known is not None

    def _changed(self, object_id: str, value: object) -> None:
        if value is None:
            self._encoder.forget(object_id)
