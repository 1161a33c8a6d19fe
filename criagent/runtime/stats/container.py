"""Statistics of containers, from the kernel's files only: no fork, no directory walk in a call.

A file that the kernel lacks leaves its values None, never zero. The size of the writable layer is
counted in the background and cached.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import TypeVar

from criagent.base.aio import run_in
from criagent.model.container import Container, ContainerState
from criagent.runtime.stats.cgroup_usage import CpuRates, Usage, read_usage
from criagent.runtime.stats.writable_layers import LayerUsage, WritableLayers

S = TypeVar("S")
T = TypeVar("T")


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
    """Reads samples in the fs executor."""

    def __init__(
        self, *, layers: WritableLayers, fs: Executor, now_ns: Callable[[], int] = time.time_ns
    ) -> None:
        self.layers = layers
        self._fs = fs
        self.now_ns = now_ns
        self.reading = asyncio.Lock()  # statistics occupy at most one file thread
        self.rates = CpuRates()

    async def sample(self, container: Container) -> StatsSample:
        """One container's sample."""
        return (await self.samples([container]))[0]

    async def samples(self, containers: Sequence[Container]) -> list[StatsSample]:
        """One sample per row, in order; all files are read in one go."""
        await self.layers.refresh(containers)
        async with self.reading:
            return await run_in(
                self._fs, lambda: [self._read(container) for container in containers]
            )

    async def converted(self, samples: Sequence[S], convert: Callable[[S], T]) -> list[T]:
        """The result of `convert` for each, computed off the event loop."""
        async with self.reading:
            return await run_in(self._fs, lambda: [convert(sample) for sample in samples])

    def forget(self, container_id: str) -> None:
        """The container, or the sandbox, was removed."""
        self.layers.forget(container_id)
        self.rates.forget(container_id)

    async def close(self) -> None:
        """Stop counting."""
        await self.layers.close()

    def _read(self, container: Container) -> StatsSample:
        sample = StatsSample(
            container=container,
            timestamp_ns=self.now_ns(),
            layer=self.layers.usage(container.id),
            mountpoint=self.layers.mountpoint,
        )
        if container.state is not ContainerState.RUNNING or not container.cgroup:
            return sample
        usage = read_usage(container.cgroup)
        rate = None
        if usage.cpu_ns is not None:
            rate = self.rates.rate(container.id, time.monotonic_ns(), usage.cpu_ns)
        return dataclasses.replace(sample, usage=usage, cpu_nano_cores=rate)
