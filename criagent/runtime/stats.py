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

from criagent.aio import run_in
from criagent.image.snapshots.overlay import OverlaySnapshots
from criagent.model import Container, ContainerState
from criagent.runtime.usage import CpuRates, Usage, read_usage

S = TypeVar("S")
T = TypeVar("T")

_COUNT_EVERY_S = 15.0  # per container; half of the kubelet's interval for local storage
_COUNTS_AT_ONCE = 2


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StatsSample:
    """What ContainerStats shows. `usage` is that of a running container."""

    container: Container
    timestamp_ns: int
    usage: Usage | None = None
    cpu_nano_cores: int | None = None
    writable_bytes: int = 0
    writable_inodes: int = 0
    mountpoint: str = ""


class ContainerStatsReader:
    """Reads samples in the fs executor."""

    def __init__(
        self, *, snapshots: OverlaySnapshots, fs: Executor, now_ns: Callable[[], int] = time.time_ns
    ) -> None:
        self._snapshots = snapshots
        self._fs = fs
        self.now_ns = now_ns
        self._usage: dict[str, tuple[float, int, int]] = {}
        self._counting: set[asyncio.Task[None]] = set()
        self._gate = asyncio.Semaphore(_COUNTS_AT_ONCE)
        self.reading = asyncio.Lock()  # one file thread at most is busy with statistics
        self.rates = CpuRates()

    async def sample(self, row: Container) -> StatsSample:
        """One container's sample."""
        return (await self.samples([row]))[0]

    async def samples(self, rows: Sequence[Container]) -> list[StatsSample]:
        """One sample a row, in order; files are read in one go."""
        for row in rows:
            self._count_soon(row)
        async with self.reading:
            return await run_in(self._fs, lambda: [self._read(row) for row in rows])

    async def converted(self, samples: Sequence[S], convert: Callable[[S], T]) -> list[T]:
        """The result of `convert` for each, made off the loop."""
        async with self.reading:
            return await run_in(self._fs, lambda: [convert(sample) for sample in samples])

    def forget(self, container_id: str) -> None:
        """The container, or the sandbox, is gone."""
        self._usage.pop(container_id, None)
        self.rates.forget(container_id)

    async def close(self) -> None:
        """Stop counting."""
        for task in list(self._counting):
            task.cancel()
        await asyncio.gather(*self._counting, return_exceptions=True)

    def _count_soon(self, row: Container) -> None:
        counted = self._usage.get(row.id)
        due = counted is None or time.monotonic() - counted[0] > _COUNT_EVERY_S
        if due and not any(task.get_name() == row.id for task in self._counting):
            task = asyncio.create_task(self._count(row.id), name=row.id)
            self._counting.add(task)
            task.add_done_callback(self._counting.discard)

    async def _count(self, container_id: str) -> None:
        async with self._gate:
            snapshot = await self._snapshots.measure(container_id)
        if snapshot is not None:
            used = (time.monotonic(), snapshot.used_bytes, snapshot.inodes)
            self._usage[container_id] = used
            self._snapshots.store.remember(snapshot)

    def _read(self, row: Container) -> StatsSample:
        _, used, inodes = self._usage.get(row.id, (0.0, 0, 0))
        sample = StatsSample(
            container=row,
            timestamp_ns=self.now_ns(),
            writable_bytes=used,
            writable_inodes=inodes,
            mountpoint=str(self._snapshots.root),
        )
        if row.state is not ContainerState.RUNNING or not row.cgroup:
            return sample
        usage = read_usage(row.cgroup)
        rate = None
        if usage.cpu_ns is not None:
            rate = self.rates.rate(row.id, time.monotonic_ns(), usage.cpu_ns)
        return dataclasses.replace(sample, usage=usage, cpu_nano_cores=rate)
