# SPDX-License-Identifier: Apache-2.0
"""Resource usage of a cgroup from its files, in the units of the CRI. Pure but for the reading.

A file that the kernel lacks leaves its values None, never zero.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable

import msgspec

from criagent.kernel import cgroupfs


class Pressure(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a pressure file (kernel documentation, accounting/psi)."""

    total_us: int
    avg10: float
    avg60: float
    avg300: float


class PressurePair(msgspec.Struct, frozen=True, kw_only=True):
    """Time in which all tasks, and in which some, were stalled."""

    full: Pressure
    some: Pressure


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Nanoseconds and bytes; None = not reported by the kernel."""

    cpu_ns: int | None = None
    memory: int | None = None
    working_set: int | None = None
    available: int | None = None  # up to the limit; None without one
    rss: int | None = None
    page_faults: int | None = None
    major_page_faults: int | None = None
    swap: int | None = None
    swap_available: int | None = None  # up to the limit; None without one
    cpu_pressure: PressurePair | None = None
    memory_pressure: PressurePair | None = None
    io_pressure: PressurePair | None = None


def counts_memory() -> bool:
    """Whether the kernel counts the memory of cgroups: some boot with cgroup_disable=memory."""
    controllers = cgroupfs.read("/", "cgroup.controllers")
    return controllers is None or "memory" in controllers.split()


def read_usage(cgroup: str, *, memory_counted: bool = True) -> Usage:
    """The usage of `cgroup` and everything below it; empty when it does not exist."""
    with cgroupfs.Reader(cgroup) as files:
        cpu_us = files.field("cpu.stat", b"usage_usec")
        memory, working_set, stat = memory_of(files) if memory_counted else _UNCOUNTED
        limit = None if memory is None else files.number("memory.max")
        swap = None if memory is None else files.number("memory.swap.current")
        swap_limit = None if swap is None else files.number("memory.swap.max")
        return Usage(
            cpu_ns=None if cpu_us is None else cpu_us * 1000,
            memory=memory,
            working_set=working_set,
            available=_left(limit, working_set),
            rss=stat.get(b"anon"),
            page_faults=stat.get(b"pgfault"),
            major_page_faults=stat.get(b"pgmajfault"),
            swap=swap,
            swap_available=_left(swap_limit, swap),
            cpu_pressure=pressure(files, "cpu"),
            memory_pressure=pressure(files, "memory"),
            io_pressure=pressure(files, "io"),
        )


def memory_of(files: cgroupfs.Reader) -> tuple[int | None, int | None, dict[bytes, int]]:
    """Usage, working set as the kubelet and cAdvisor count it, and memory.stat."""
    usage = files.number("memory.current")
    if usage is None:
        return None, None, {}
    stat = files.flat("memory.stat") or {}
    return usage, max(usage - stat.get(b"inactive_file", 0), 0), stat


def pressure(files: cgroupfs.Reader, kind: str) -> PressurePair | None:
    """A pressure file; None where the kernel lacks it or has it switched off."""
    text = files.raw(f"{kind}.pressure")
    return None if text is None else parse_pressure(text)


@functools.lru_cache(maxsize=2048)
def parse_pressure(text: bytes) -> PressurePair | None:
    """The content of a pressure file. Most containers are idle, and then it stays the same."""
    found: dict[bytes, Pressure] = {}
    for line in text.splitlines():
        key, *pairs = line.split()
        values = dict(pair.split(b"=", 1) for pair in pairs)
        found[key] = Pressure(
            total_us=int(values[b"total"]),
            avg10=float(values[b"avg10"]),
            avg60=float(values[b"avg60"]),
            avg300=float(values[b"avg300"]),
        )
    if b"some" not in found:
        return None
    return PressurePair(full=found.get(b"full", _NONE), some=found[b"some"])


def total(usages: Iterable[Usage]) -> Usage:
    """The sum over several cgroups; limits and pressure are left out."""
    parts = list(usages)
    return Usage(
        cpu_ns=_sum(part.cpu_ns for part in parts),
        memory=_sum(part.memory for part in parts),
        working_set=_sum(part.working_set for part in parts),
        rss=_sum(part.rss for part in parts),
        page_faults=_sum(part.page_faults for part in parts),
        major_page_faults=_sum(part.major_page_faults for part in parts),
        swap=_sum(part.swap for part in parts),
    )


class CpuRates:
    """Nanoseconds of CPU time per second, from the difference of two samples of the same cgroup.

    Callers come at any time: a second one within a second gets the same rate as the first, and a
    sample older than two minutes is not compared with. One thread at a time.
    """

    def __init__(self) -> None:
        self._samples: dict[str, tuple[int, int, int | None]] = {}

    def rate(self, key: str, now_ns: int, usage_ns: int) -> int | None:
        """The rate of `key` at `now_ns` of a monotonic clock; None for the first sample."""
        then_ns, before, rate = self._samples.get(key, (0, 0, None))
        if then_ns and now_ns - then_ns < _WINDOW_NS[0] and usage_ns >= before:
            return rate
        rate = None
        if then_ns and now_ns - then_ns <= _WINDOW_NS[1] and usage_ns >= before:
            rate = (usage_ns - before) * 10**9 // (now_ns - then_ns)
        self._samples[key] = (now_ns, usage_ns, rate)
        return rate

    def forget(self, key: str) -> None:
        """Forget a cgroup that was removed."""
        self._samples.pop(key, None)


def _sum(values: Iterable[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _left(limit: int | None, used: int | None) -> int | None:
    return None if limit is None or used is None else max(limit - used, 0)


_UNCOUNTED: tuple[None, None, dict[bytes, int]] = (None, None, {})
_NONE = Pressure(total_us=0, avg10=0.0, avg60=0.0, avg300=0.0)
_WINDOW_NS = (10**9, 120 * 10**9)
