# SPDX-License-Identifier: Apache-2.0
"""Statistics of containers, from the kernel's files only: no fork, no directory walk in a call.

A file that the kernel lacks leaves its values None, never zero. The size of the writable layer is
counted in the background and cached.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence

from criagent.model.container import Container, ContainerState
from criagent.runtime.stats.cgroup_usage import CpuRates, Usage, read_usage
from criagent.runtime.stats.thread import StatsThread
from criagent.runtime.stats.writable_layers import LayerUsage, WritableLayers


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StatsSample:
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

    async def samples(self, containers: Sequence[Container]) -> list[StatsSample]:
        """One sample a container, in order; files are read in one go."""
        await self._layers.refresh(containers)
        return await self._thread.each(containers, self._read)

    def forget(self, container_id: str) -> None:
        """The container, or the sandbox, was removed."""
        self._layers.forget(container_id)
        self._rates.forget(container_id)

    def _read(self, container: Container) -> StatsSample:
        sample = StatsSample(
            container=container,
            timestamp_ns=self._now_ns(),
            layer=self._layers.usage(container.id),
            mountpoint=self._layers.mountpoint(container.id),
        )
        if container.state is not ContainerState.RUNNING or not container.cgroup:
            return sample
        usage = read_usage(container.cgroup)
        rate = None
        if usage.cpu_ns is not None:
            rate = self._rates.rate(container.id, time.monotonic_ns(), usage.cpu_ns)
        return dataclasses.replace(sample, usage=usage, cpu_nano_cores=rate)
