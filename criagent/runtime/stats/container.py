# SPDX-License-Identifier: Apache-2.0
"""Statistics of containers, from the kernel's files only: no fork, no directory walk in a call.

A file that the kernel lacks leaves its values None, never zero. The size of the writable layer is
counted in the background and cached.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import msgspec

from criagent.model.container import Container, ContainerState
from criagent.runtime.stats.cgroup_usage import CpuRates, Usage, counts_memory, read_usage
from criagent.runtime.stats.thread import StatsThread
from criagent.runtime.stats.writable_layers import LayerUsage, WritableLayers

T = TypeVar("T")


class StatsSample(msgspec.Struct, frozen=True, kw_only=True):
    """The contents of ContainerStats. `usage` is that of a running container."""

    container: Container
    timestamp_ns: int
    usage: Usage | None = None
    cpu_nano_cores: int | None = None
    layer: LayerUsage | None = None  # bytes and inodes written; None before the first count
    mountpoint: str = ""


class ContainerStatsReader:
    """Reads samples off the loop."""

    def __init__(
        self,
        *,
        layers: WritableLayers,
        rates: CpuRates,
        thread: StatsThread,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._layers = layers
        self._rates = rates
        self._thread = thread
        self._now_ns = now_ns
        self._memory_counted = True

    async def read(
        self, containers: Sequence[Container], convert: Callable[[StatsSample], T]
    ) -> list[T]:
        """One sample a container, in order, converted in the reading thread."""
        await self.refresh(containers)
        return await self._thread.run(
            lambda: [convert(self.sample(container)) for container in containers]
        )

    async def refresh(self, containers: Sequence[Container]) -> None:
        """Prepare for samples: count the writable layers that are due."""
        self._memory_counted = counts_memory()
        await self._layers.refresh(containers)

    def sample(self, container: Container) -> StatsSample:
        """One container now; to be called in the reading thread."""
        usage = rate = None
        now_ns = self._now_ns()
        if container.state is ContainerState.RUNNING and container.cgroup:
            usage = read_usage(container.cgroup, memory_counted=self._memory_counted)
            if usage.cpu_ns is not None:
                rate = self._rates.rate(container.id, time.monotonic_ns(), usage.cpu_ns)
        return StatsSample(
            container=container,
            timestamp_ns=now_ns,
            usage=usage,
            cpu_nano_cores=rate,
            layer=self._layers.usage(container.id),
            mountpoint=self._layers.mountpoint(container.id),
        )

    def forget(self, container_id: str) -> None:
        """The container, or the sandbox, was removed."""
        self._layers.forget(container_id)
        self._rates.forget(container_id)
