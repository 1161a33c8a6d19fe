"""Statistics of containers, from the kernel's files alone: no fork, no walk in a call's way.

A file that the kernel lacks leaves its values None, never zero. The writable layer is counted in
the background and kept.
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
    """What ContainerStats shows. `usage` is that of a running container."""

    container: Container
    timestamp_ns: int
    usage: Usage | None = None
    cpu_nano_cores: int | None = None
    layer: LayerUsage | None = None  # what it has written; None before the first count
    mountpoint: str = ""


class ContainerStatsReader:
    """Reads samples in the fs executor."""

    def __init__(
        self, *, layers: WritableLayers, fs: Executor, now_ns: Callable[[], int] = time.time_ns
    ) -> None:
        self.layers = layers
        self._fs = fs
        self.now_ns = now_ns
        self.reading = asyncio.Lock()  # one file thread at most is busy with statistics
        self.rates = CpuRates()

    async def sample(self, container: Container) -> StatsSample:
        """One container's sample."""
        return (await self.samples([container]))[0]

    async def samples(self, containers: Sequence[Container]) -> list[StatsSample]:
        """One sample a row, in order; files are read in one go."""
        await self.layers.refresh(containers)
        async with self.reading:
            return await run_in(
                self._fs, lambda: [self._read(container) for container in containers]
            )

    async def converted(self, samples: Sequence[S], convert: Callable[[S], T]) -> list[T]:
        """The result of `convert` for each, made off the loop."""
        async with self.reading:
            return await run_in(self._fs, lambda: [convert(sample) for sample in samples])

    def forget(self, container_id: str) -> None:
        """The container, or the sandbox, is gone."""
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
