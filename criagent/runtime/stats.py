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
from typing import Any

from criagent.aio import run_in
from criagent.image.snapshots.overlay import OverlaySnapshots
from criagent.kernel import cgroupfs
from criagent.model import Container, ContainerState

_COUNT_EVERY_S = 15.0  # per container; half of the kubelet's interval for local storage
_COUNTS_AT_ONCE = 2


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Pressure:
    """One line of a pressure file (kernel documentation, accounting/psi)."""

    total_us: int
    avg10: float
    avg60: float
    avg300: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PressurePair:
    """Time in which all tasks, and in which some, were stalled."""

    full: Pressure
    some: Pressure


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StatsSample:
    """What ContainerStats shows; bytes and nanoseconds. None = the kernel does not tell."""

    container: Container
    timestamp_ns: int
    cpu_usage_ns: int | None = None
    cpu_nano_cores: int | None = None
    memory_working_set: int | None = None
    memory_usage: int | None = None
    memory_available: int | None = None
    memory_rss: int | None = None
    page_faults: int | None = None
    major_page_faults: int | None = None
    swap_usage: int | None = None
    swap_available: int | None = None
    cpu_pressure: PressurePair | None = None
    memory_pressure: PressurePair | None = None
    io_pressure: PressurePair | None = None
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
        self._now_ns = now_ns
        self._usage: dict[str, tuple[float, int, int]] = {}
        self._counting: set[asyncio.Task[None]] = set()
        self._gate = asyncio.Semaphore(_COUNTS_AT_ONCE)
        self._last: dict[str, tuple[int, int]] = {}

    async def sample(self, row: Container) -> StatsSample:
        """One container's sample."""
        return (await self.samples([row]))[0]

    async def samples(self, rows: Sequence[Container]) -> list[StatsSample]:
        """One sample a row, in order; files are read in one go."""
        for row in rows:
            self._count_soon(row)
        return await run_in(self._fs, lambda: [self._read(row) for row in rows])

    def forget(self, container_id: str) -> None:
        """The container is gone."""
        self._usage.pop(container_id, None)
        self._last.pop(container_id, None)

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
            timestamp_ns=self._now_ns(),
            writable_bytes=used,
            writable_inodes=inodes,
            mountpoint=str(self._snapshots.root),
        )
        if row.state is not ContainerState.RUNNING or not row.cgroup:
            return sample
        measured: dict[str, Any] = {
            **self._cpu(row, sample.timestamp_ns),
            **_memory(row.cgroup),
        }
        return dataclasses.replace(
            sample,
            **measured,
            cpu_pressure=_pressure(row.cgroup, "cpu"),
            memory_pressure=_pressure(row.cgroup, "memory"),
            io_pressure=_pressure(row.cgroup, "io"),
        )

    def _cpu(self, row: Container, now_ns: int) -> dict[str, int | None]:
        usage_us = cgroupfs.flat(cgroupfs.read(row.cgroup, "cpu.stat")).get("usage_usec")
        if usage_us is None:
            return {}
        usage = usage_us * 1000
        then_ns, before = self._last.get(row.id, (0, 0))
        self._last[row.id] = (now_ns, usage)
        cores = None
        if then_ns and now_ns > then_ns:
            cores = max(usage - before, 0) * 10**9 // (now_ns - then_ns)
        return {"cpu_usage_ns": usage, "cpu_nano_cores": cores}


def cgroup_sample(cgroup: str) -> dict[str, int | None]:
    """CPU time and memory of any cgroup; what the kernel does not tell is left out or None."""
    usage_us = cgroupfs.flat(cgroupfs.read(cgroup, "cpu.stat")).get("usage_usec")
    cpu = {} if usage_us is None else {"cpu_usage_ns": usage_us * 1000}
    return {**cpu, **_memory(cgroup)}


def _memory(cgroup: str) -> dict[str, int | None]:
    usage = _number(cgroup, "memory.current")
    if usage is None:
        return {}
    stat = cgroupfs.flat(cgroupfs.read(cgroup, "memory.stat"))
    working_set = max(usage - stat.get("inactive_file", 0), 0)  # as the kubelet counts it
    limit = _number(cgroup, "memory.max")
    swap, swap_limit = _number(cgroup, "memory.swap.current"), _number(cgroup, "memory.swap.max")
    return {
        "memory_usage": usage,
        "memory_working_set": working_set,
        "memory_available": None if limit is None else max(limit - working_set, 0),
        "memory_rss": stat.get("anon"),
        "page_faults": stat.get("pgfault"),
        "major_page_faults": stat.get("pgmajfault"),
        "swap_usage": swap,
        "swap_available": None if swap_limit is None else max(swap_limit - (swap or 0), 0),
    }


def _number(cgroup: str, name: str) -> int | None:
    """A single number; None where there is no file or it says "max"."""
    text = (cgroupfs.read(cgroup, name) or "").strip()
    return int(text) if text.isdigit() else None


def _pressure(cgroup: str, kind: str) -> PressurePair | None:
    lines = {}
    for line in (cgroupfs.read(cgroup, f"{kind}.pressure") or "").splitlines():
        name, *fields = line.split()
        values = dict(field.split("=") for field in fields)
        lines[name] = Pressure(
            total_us=int(values["total"]),
            avg10=float(values["avg10"]),
            avg60=float(values["avg60"]),
            avg300=float(values["avg300"]),
        )
    if not lines:
        return None
    zero = Pressure(total_us=0, avg10=0.0, avg60=0.0, avg300=0.0)
    return PressurePair(full=lines.get("full", zero), some=lines.get("some", zero))
