# SPDX-License-Identifier: Apache-2.0
"""The metrics of ListMetricDescriptors: names, labels and meanings of cAdvisor's series.

The labels that every series has come first, in the order of `BASE_LABELS`. `id` is the id of the
container or sandbox, as in containerd and CRI-O.
"""

from __future__ import annotations

import dataclasses

BASE_LABELS = ("pod", "namespace", "container", "id", "image")


@dataclasses.dataclass(frozen=True, slots=True)
class Metric:
    """One series: a counter only grows, a gauge does not."""

    name: str
    help: str
    counter: bool = False
    labels: tuple[str, ...] = ()


def _counter(name: str, text: str, *labels: str) -> Metric:
    return Metric(f"container_{name}", text, counter=True, labels=labels)


def _gauge(name: str, text: str, *labels: str) -> Metric:
    return Metric(f"container_{name}", text, counter=False, labels=labels)


CPU_USER = _counter("cpu_user_seconds_total", "CPU time spent in user mode, in seconds.")
CPU_SYSTEM = _counter("cpu_system_seconds_total", "CPU time spent in the kernel, in seconds.")
CPU_USAGE = _counter("cpu_usage_seconds_total", "CPU time spent, in seconds.", "cpu")
CFS_PERIODS = _counter("cpu_cfs_periods_total", "Periods in which the CPU quota was in force.")
CFS_THROTTLED = _counter("cpu_cfs_throttled_periods_total", "Periods cut short by the CPU quota.")
CFS_SECONDS = _counter(
    "cpu_cfs_throttled_seconds_total", "Time throttled by the CPU quota, in seconds."
)

MEMORY_CACHE = _gauge("memory_cache", "Bytes of page cache.")
MEMORY_RSS = _gauge("memory_rss", "Bytes of anonymous memory.")
MEMORY_KERNEL = _gauge("memory_kernel_usage", "Bytes of kernel memory.")
MEMORY_MAPPED = _gauge("memory_mapped_file", "Bytes of files mapped into processes.")
MEMORY_SWAP = _gauge("memory_swap", "Bytes in swap.")
MEMORY_FAILCNT = _counter(
    "memory_failcnt", "Number of times that usage was about to exceed the limit."
)
MEMORY_USAGE = _gauge("memory_usage_bytes", "Bytes of memory in use, of any kind.")
MEMORY_MAX = _gauge("memory_max_usage_bytes", "Highest memory usage so far, in bytes.")
MEMORY_WORKING_SET = _gauge("memory_working_set_bytes", "Usage without inactive page cache, bytes.")
MEMORY_FAILURES = _counter("memory_failures_total", "Page faults.", "failure_type", "scope")
OOM_EVENTS = _counter("oom_events_total", "Processes killed because memory ran out.")

FS_INODES_FREE = _gauge("fs_inodes_free", "Free inodes of the filesystem.", "device")
FS_INODES_TOTAL = _gauge("fs_inodes_total", "Inodes of the filesystem.", "device")
FS_LIMIT = _gauge("fs_limit_bytes", "Size of the filesystem, in bytes.", "device")
FS_USAGE = _gauge("fs_usage_bytes", "Bytes that the container has written.", "device")
FS_READ_BYTES = _counter("fs_reads_bytes_total", "Bytes read.", "device")
FS_READS = _counter("fs_reads_total", "Reads completed.", "device")
FS_WRITE_BYTES = _counter("fs_writes_bytes_total", "Bytes written.", "device")
FS_WRITES = _counter("fs_writes_total", "Writes completed.", "device")
BLKIO = _counter(
    "blkio_device_usage_total",
    "Bytes by block device and operation.",
    "device",
    "major",
    "minor",
    "operation",
)

HUGETLB = _gauge("hugetlb_usage_bytes", "Bytes of huge pages in use.", "pagesize")
HUGETLB_MAX = _gauge(
    "hugetlb_max_usage_bytes", "Highest usage of huge pages so far, in bytes.", "pagesize"
)

RX_BYTES = _counter("network_receive_bytes_total", "Bytes received.", "interface")
RX_PACKETS = _counter("network_receive_packets_total", "Packets received.", "interface")
RX_DROPPED = _counter(
    "network_receive_packets_dropped_total", "Received packets that were dropped.", "interface"
)
RX_ERRORS = _counter("network_receive_errors_total", "Errors while receiving.", "interface")
TX_BYTES = _counter("network_transmit_bytes_total", "Bytes sent.", "interface")
TX_PACKETS = _counter("network_transmit_packets_total", "Packets sent.", "interface")
TX_DROPPED = _counter(
    "network_transmit_packets_dropped_total", "Packets dropped while sending.", "interface"
)
TX_ERRORS = _counter("network_transmit_errors_total", "Errors while sending.", "interface")

PROCESSES = _gauge("processes", "Processes.")
FILE_DESCRIPTORS = _gauge("file_descriptors", "Open file descriptors.")
SOCKETS = _gauge("sockets", "Open sockets.")
THREADS = _gauge("threads", "Threads.")
THREADS_MAX = _gauge("threads_max", "Maximum number of threads; 0 for no limit.")
ULIMITS_SOFT = _gauge("ulimits_soft", "Soft resource limits of the main process.", "ulimit")

LAST_SEEN = _gauge("last_seen", "When these values were read, in seconds since 1970.")
START_TIME = _gauge("start_time_seconds", "When it was started, in seconds since 1970.")

SPEC_CPU_PERIOD = _gauge("spec_cpu_period", "Period of the CPU quota, in microseconds.")
SPEC_CPU_QUOTA = _gauge("spec_cpu_quota", "CPU quota, in microseconds per period.")
SPEC_CPU_SHARES = _gauge("spec_cpu_shares", "CPU shares.")
SPEC_MEMORY = _gauge("spec_memory_limit_bytes", "Memory limit in bytes; 0 for none.")
SPEC_RESERVATION = _gauge(
    "spec_memory_reservation_limit_bytes", "Memory protected from reclaim, in bytes."
)
SPEC_SWAP = _gauge("spec_memory_swap_limit_bytes", "Swap limit in bytes; 0 for none.")

PRESSURE = {
    kind: (
        _counter(
            f"pressure_{kind}_stalled_seconds_total",
            f"Time in which no task made progress for lack of {what}, in seconds.",
        ),
        _counter(
            f"pressure_{kind}_waiting_seconds_total",
            f"Time in which some task waited for {what}, in seconds.",
        ),
    )
    for kind, what in (("cpu", "a CPU"), ("memory", "memory"), ("io", "IO"))
}

CATALOGUE: tuple[Metric, ...] = (
    *(value for value in list(vars().values()) if isinstance(value, Metric)),
    *(metric for pair in PRESSURE.values() for metric in pair),
)
