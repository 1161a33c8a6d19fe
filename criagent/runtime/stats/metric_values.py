# SPDX-License-Identifier: Apache-2.0
"""Values of the catalogue's metrics from the kernel's files, counted as cAdvisor does.

A file that the kernel lacks leaves its metrics out. Synchronous; no fork. Times are seconds.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import resource
from collections.abc import Iterable, Iterator
from pathlib import Path

from criagent.kernel import cgroupfs, mount
from criagent.runtime.stats import metric_catalogue as names
from criagent.runtime.stats.cgroup_usage import memory_of, pressure
from criagent.runtime.stats.metric_catalogue import Metric

_US = 10**6
_MOST_PROCESSES = 10_000
_MOST_DESCRIPTORS = 10_000  # of one container: one link is read for each
_KERNEL_PARTS = (b"kernel_stack", b"pagetables", b"percpu", b"slab")


@dataclasses.dataclass(frozen=True, slots=True)
class Value:
    """One sample. `labels` belong to the metric's own label keys; `at_ns` 0 = read just now."""

    metric: Metric
    number: int | float  # a float has a fraction, as times do
    labels: tuple[str, ...] = ()
    at_ns: int = 0


class Devices:
    """Names of block devices, looked up once during the life of this object."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}

    def name(self, number: str) -> str:
        """The node of the device "major:minor", or the number itself."""
        if number not in self._names:
            try:
                found = os.path.basename(os.readlink(f"/sys/dev/block/{number}"))
                self._names[number] = f"/dev/{found}"
            except OSError:
                self._names[number] = number
        return self._names[number]

    def holding(self, path: Path) -> str:
        """The device of the filesystem at `path`, or its source in /proc/mounts."""
        device = os.stat(path).st_dev
        number = f"{os.major(device)}:{os.minor(device)}"
        named = self.name(number)
        if named != number:
            return named
        # btrfs, overlay and others have numbers without a device
        entry = mount.holder(path)
        # A label has to be UTF-8.
        return os.fsencode(entry.source if entry else number).decode(errors="replace")


def cgroup_values(files: cgroupfs.Reader, devices: Devices, shares: int = 0) -> Iterator[Value]:
    """Values of one cgroup's files. `shares` is the requested value, 0 = none."""
    yield from _cpu(files, shares)
    yield from _memory(files)
    yield from _io(files, devices)
    for size in _page_sizes():
        current = files.number(f"hugetlb.{size}.rsvd.current")
        if current is None:
            current = files.number(f"hugetlb.{size}.current")
        yield from _some(names.HUGETLB, current, size)
        yield from _some(names.HUGETLB_MAX, files.number(f"hugetlb.{size}.peak"), size)
    yield from _some(names.THREADS, files.number("pids.current"))
    yield from _some(names.THREADS_MAX, _limit(files, "pids.max"))
    for kind, (stalled, waiting) in names.PRESSURE.items():
        pair = pressure(files, kind)
        if pair is not None:
            yield Value(stalled, pair.full.total_us / _US)
            yield Value(waiting, pair.some.total_us / _US)


def process_values(cgroup: str, init_pid: int) -> Iterator[Value]:
    """Processes of a container, with their descriptors and the limits of the first one."""
    pids = cgroupfs.processes(cgroup, _MOST_PROCESSES)
    if pids is None:
        return
    yield Value(names.PROCESSES, len(pids))
    descriptors = sockets = 0
    for pid in pids:
        if descriptors > _MOST_DESCRIPTORS:
            break
        try:
            links = os.listdir(f"/proc/{pid}/fd")
        except OSError:
            continue  # it has ended
        descriptors += len(links)
        sockets += sum(_is_socket(f"/proc/{pid}/fd/{link}") for link in links[:_MOST_DESCRIPTORS])
    if descriptors <= _MOST_DESCRIPTORS:
        yield Value(names.FILE_DESCRIPTORS, descriptors)
        yield Value(names.SOCKETS, sockets)
    if init_pid in pids:
        try:
            soft, _ = resource.prlimit(init_pid, resource.RLIMIT_NOFILE)
        except OSError:
            return
        yield Value(names.ULIMITS_SOFT, soft, ("max_open_files",))


def filesystem_values(root: Path, device: str) -> tuple[Value, ...]:
    """Space on the filesystem that holds writable layers."""
    facts = os.statvfs(root)
    return (
        Value(names.FS_LIMIT, facts.f_blocks * facts.f_frsize, (device,)),
        Value(names.FS_INODES_TOTAL, facts.f_files, (device,)),
        Value(names.FS_INODES_FREE, facts.f_ffree, (device,)),
    )


def _cpu(files: cgroupfs.Reader, shares: int) -> Iterator[Value]:
    stat = files.flat("cpu.stat") or {}
    for metric, key, labels in (
        (names.CPU_USER, b"user_usec", ()),
        (names.CPU_SYSTEM, b"system_usec", ()),
        (names.CPU_USAGE, b"usage_usec", ("total",)),
    ):
        if key in stat:
            yield Value(metric, stat[key] / _US, labels)
    weight = files.number("cpu.weight")
    if weight is not None:
        yield Value(names.SPEC_CPU_SHARES, shares or 2 + (weight - 1) * 262142 // 9999)
    maximum = (files.raw("cpu.max") or b"").split()
    if len(maximum) == 2:
        yield Value(names.SPEC_CPU_PERIOD, int(maximum[1]))
        if maximum[0] != b"max":
            yield Value(names.SPEC_CPU_QUOTA, int(maximum[0]))
            yield from _some(names.CFS_PERIODS, stat.get(b"nr_periods"))
            yield from _some(names.CFS_THROTTLED, stat.get(b"nr_throttled"))
            if b"throttled_usec" in stat:
                yield Value(names.CFS_SECONDS, stat[b"throttled_usec"] / _US)


def _memory(files: cgroupfs.Reader) -> Iterator[Value]:
    usage, working_set, stat = memory_of(files)
    if usage is None or working_set is None:
        return
    yield Value(names.MEMORY_USAGE, usage)
    yield Value(names.MEMORY_WORKING_SET, working_set)
    yield from _some(names.MEMORY_CACHE, stat.get(b"file"))
    yield from _some(names.MEMORY_RSS, stat.get(b"anon"))
    yield from _some(names.MEMORY_MAPPED, stat.get(b"file_mapped"))
    kernel = stat.get(b"kernel")  # Linux 5.18
    if kernel is None and b"kernel_stack" in stat:
        kernel = sum(stat.get(part, 0) for part in _KERNEL_PARTS)
    yield from _some(names.MEMORY_KERNEL, kernel)
    for kind in ("pgfault", "pgmajfault"):
        for scope in ("container", "hierarchy"):  # the same thing in cgroup v2
            yield from _some(names.MEMORY_FAILURES, stat.get(kind.encode()), kind, scope)
    yield from _some(names.MEMORY_MAX, files.number("memory.peak"))  # Linux 5.19
    yield from _some(names.MEMORY_SWAP, files.number("memory.swap.current"))
    events = files.flat("memory.events") or {}
    yield from _some(names.MEMORY_FAILCNT, events.get(b"max"))
    yield from _some(names.OOM_EVENTS, events.get(b"oom_kill"))
    yield from _some(names.SPEC_MEMORY, _limit(files, "memory.max"))
    yield from _some(names.SPEC_SWAP, _limit(files, "memory.swap.max"))
    yield from _some(names.SPEC_RESERVATION, _limit(files, "memory.min"))


def _io(files: cgroupfs.Reader, devices: Devices) -> Iterator[Value]:
    for key, values in files.nested("io.stat").items():
        number = key.decode()
        major, _, minor = number.partition(":")
        device = devices.name(number)
        for metric, name in (
            (names.FS_READ_BYTES, b"rbytes"),
            (names.FS_WRITE_BYTES, b"wbytes"),
            (names.FS_READS, b"rios"),
            (names.FS_WRITES, b"wios"),
        ):
            if name in values:
                yield Value(metric, int(values[name]), (device,))
        for operation, name in (("Read", b"rbytes"), ("Write", b"wbytes")):
            if name in values:
                labels = (device, major, minor, operation)
                yield Value(names.BLKIO, int(values[name]), labels)


def _some(metric: Metric, number: int | None, *labels: str) -> Iterable[Value]:
    return () if number is None else (Value(metric, number, labels),)


def _limit(files: cgroupfs.Reader, name: str) -> int | None:
    """A limit in cAdvisor's form: 0 for "max"."""
    limit = files.limit(name)
    return 0 if limit == cgroupfs.UNLIMITED else limit


def _is_socket(link: str) -> bool:
    try:
        return os.readlink(link).startswith("socket:")
    except OSError:
        return False


@functools.cache
def _page_sizes() -> list[str]:
    """Sizes of huge pages as cgroup files spell them: 2MB, 1GB."""
    try:
        found = os.listdir("/sys/kernel/mm/hugepages")
    except OSError:
        return []
    return sorted(_page_size(int(name.removeprefix("hugepages-")[:-2])) for name in found)


def _page_size(kilobytes: int) -> str:
    for unit, size in (("GB", 1 << 20), ("MB", 1 << 10)):
        if kilobytes >= size:
            return f"{kilobytes // size}{unit}"
    return f"{kilobytes}KB"
